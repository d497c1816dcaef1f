package vm

import (
	"context"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// packages is the directory of kuri.deb, the package of this build as scripts/dist creates it, and
// next.deb, a later version whose programs differ by one byte.
const packages = "/vm/exchange/package"

// dpkg runs dpkg with a database of its own and returns its output. The machine's own database has
// triggers of other packages, of which man-db's alone takes minutes here.
func dpkg(t *testing.T, database string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patient(time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, "dpkg",
		append([]string{"--admindir=" + database, "--force-unsafe-io", "--force-confold"}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.WaitDelay = time.Second
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		processes, _ := exec.Command("ps", "-e", "-o", "pid,ppid,stat,etimes,args").Output()
		t.Fatalf("dpkg %s, %v after %v:\n%s\n%s", strings.Join(args, " "), err, ctx.Err(), out, processes)
	}
	t.Logf("dpkg %s took %s", strings.Join(args, " "), time.Since(began).Round(100*time.Millisecond))
	return string(out)
}

// namedKuri lists the files with "kuri" in their paths that the machine has written outside its
// memory filesystems, except logs.
func namedKuri(t *testing.T) map[string]bool {
	t.Helper()
	const upper = "/vm/disk/upper"
	found := make(map[string]bool)
	err := filepath.WalkDir(upper, func(path string, entry fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, upper)
		switch {
		case os.IsNotExist(err):
			return nil
		case err != nil:
			return err
		case name == "/var/log":
			return fs.SkipDir
		// Overlayfs marks a removed file with a character device.
		case strings.Contains(name, "kuri") && entry.Type()&fs.ModeCharDevice == 0:
			found[name] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// The .deb is installed and starts kurid as its unit, and a pod runs. The next version takes over
// while the pod runs. After a removal and purge without pods nothing is left. With KURI_VM_MORE the
// package is also removed while the pod runs, which continues, and installed again.
func TestPackage(t *testing.T) {
	more(t)
	d := start(t)
	if _, err := os.Stat(filepath.Join(packages, "next.deb")); err != nil {
		t.Skipf("SKIP: the packages could not be built where the machine was started: %v", err)
	}
	afresh(t, d)
	t.Cleanup(func() {
		unit(t, "/vm/exchange", "kurid.service", "kurid-handover.service")
		reinstall(t, "/vm/exchange/bin", "kurid", "kuri", "kuri-keeper", "kuri-holder")
		systemctl(t, "start", "kurid.service")
		dial(t, d)
	})
	if out, err := exec.Command(filepath.Join(installed, "kurid"), "network", "prune").CombinedOutput(); err != nil {
		t.Fatalf("kurid network prune: %v: %s", err, out)
	}
	unit(t, "/vm/exchange") // with no unit of it
	for _, path := range []string{
		filepath.Join(installed, "kurid"), filepath.Join(installed, "kuri"), filepath.Join(installed, "kuri-keeper"),
		filepath.Join(installed, "kuri-holder"),
		"/usr/sbin/policy-rc.d", // the machine's files may be those of a container image, in which packages start nothing
	} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	database := t.TempDir()
	for _, name := range []string{"info", "updates", "triggers"} {
		if err := os.Mkdir(filepath.Join(database, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	harness.Write(t, database, "status", "")
	systemctl(t, "start", "dbus.service") // otherwise the package's scripts may be the first to need it
	files, idle := namedKuri(t), observe(t, d)

	serves := func(what string) string {
		t.Helper()
		dial(t, d)
		pid := property(t, "kurid.service", "MainPID")
		// The path of a replaced program is shown as deleted.
		if program, err := os.Readlink("/proc/" + pid + "/exe"); program != "/usr/bin/kurid" {
			t.Fatalf("%s, the unit's main process %s runs %q, %v", what, pid, program, err)
		}
		return pid
	}
	dpkg(t, database, "--install", filepath.Join(packages, "kuri.deb"))
	main := serves("installed")
	if state := property(t, "kurid.service", "UnitFileState"); state != "enabled" {
		t.Errorf("installed, the unit is %s", state)
	}
	image := d.PullBusybox(t)
	config := harness.Pod("packaged")
	pod := d.RunPod(t, config)
	c := d.Run(t, pod, harness.Container("count", image, "sh", "-c",
		"i=0; while :; do echo $i; i=$((i+1)); sleep 0.5; done"), config)
	first, log, keeper := firstPid(t, d, c), filepath.Join(config.LogDirectory, "count.log"), d.KeeperPid()
	goesOn(t, log)
	same := func(when string) {
		t.Helper()
		if st := d.ContainerStatus(t, c); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			firstPid(t, d, c) != first || st.Message != "" {
			t.Errorf("%s, the container is %s with process %d (%q), was %d", when, st.State, firstPid(t, d, c), st.Message,
				first)
		}
		goesOn(t, log)
	}

	dpkg(t, database, "--install", filepath.Join(packages, "next.deb"))
	if now := serves("upgraded"); now == main {
		t.Errorf("upgraded, the unit's main process is still %s", now)
	}
	if now := d.KeeperPid(); now == keeper || now == 0 {
		t.Errorf("upgraded, the keeper is process %d, was %d", now, keeper)
	}
	same("upgraded")

	if os.Getenv("KURI_VM_MORE") != "" {
		if said := dpkg(t, database, "--remove", "kuri"); !strings.Contains(said, "pods go on without Kuri") {
			t.Errorf("removed with a pod running, the package says:\n%s", said)
		}
		if _, err := os.Stat("/usr/bin/kurid"); err == nil {
			t.Error("removed, the package leaves /usr/bin/kurid")
		}
		if err := syscall.Kill(first, 0); err != nil {
			t.Fatalf("removed, the package ends the pod: %v", err)
		}
		goesOn(t, log)
		dpkg(t, database, "--install", filepath.Join(packages, "next.deb"))
		serves("installed again")
		same("installed again")
	}

	d.RemovePod(t, pod)
	if _, err := d.Images.RemoveImage(t.Context(),
		&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		t.Error(err)
	}
	d.Runtime.Close()
	d.Images.Close()
	dpkg(t, database, "--remove", "kuri")
	for _, program := range []string{"/usr/bin/kuri", "kuri-holder", "kuri-keeper"} {
		if left := harness.Processes(t, program); len(left) > 0 {
			t.Errorf("removed, the package leaves the processes %v", left)
		}
	}
	dpkg(t, database, "--purge", "kuri")
	harness.CheckLeaks(t, "after the purge", idle, d.Leaky()...)
	for name := range namedKuri(t) {
		if !files[name] {
			t.Errorf("purged, the package leaves %s", name)
		}
	}
	for _, dir := range []string{"/run/kuri", "/var/lib/kuri", "/etc/kuri"} {
		if entries, err := os.ReadDir(dir); len(entries) > 0 || err == nil && dir != "/var/lib/kuri" { // a mount point here
			t.Errorf("purged, the package leaves %s with %v", dir, entries)
		}
	}
	for _, dir := range []string{"/etc/systemd", "/var/lib/systemd"} {
		// The links of an enabled or masked unit.
		if out, _ := exec.Command("find", dir, "-name", "kurid*").Output(); len(out) > 0 {
			t.Errorf("purged, the package leaves %s", out)
		}
	}
	if state, _ := exec.Command("systemctl", "is-active",
		"kurid.service").Output(); strings.TrimSpace(string(state)) == "active" {
		t.Error("purged, the unit is active")
	}
}
