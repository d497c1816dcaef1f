package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// doctorReport is the output of kuri doctor -o json.
type doctorReport struct {
	Damages []damage
	Blind   []struct{ Check, Error string }
	Serving bool
}

type damage struct {
	Check, Subject, Problem, Advice string
	Fixable, Fixed                  bool
	FixError                        string
}

// withoutKurid makes kuri doctor give kurid up sooner where the holder has its socket and nobody answers.
const withoutKurid = "--timeout=1s"

// doctor runs kuri doctor and returns its report and exit code.
func doctor(t *testing.T, d *harness.Daemon, flags ...string) (doctorReport, int) {
	t.Helper()
	args := append([]string{"doctor", "-o", "json", "--kurid-config", filepath.Join(d.Dir, "config.toml")}, flags...)
	out, errs, code := d.Kuri(t, args...)
	var r doctorReport
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("kuri doctor: exit code %d, %v: %s%s", code, err, out, errs)
	}
	for _, b := range r.Blind {
		t.Errorf("kuri doctor could not look at %s: %s", b.Check, b.Error)
	}
	return r, code
}

// id returns an id that no pod or container has.
func id(digit string) string { return strings.Repeat(digit, 64) }

// mess is one damage that the test makes by hand.
type mess struct {
	check, subject string // the check that finds it, and a part of the subject that it reports
	fixable        bool
	make           func(*testing.T)
	there          func() bool // whether the damage still exists
}

// TestDoctor damages a node in every way that kuri doctor knows, while pods run. kuri doctor finds
// all of the damage and nothing else, repairs what can be repaired, and leaves running pods and
// foreign objects unchanged.
func TestDoctor(t *testing.T) {
	scratch := t.TempDir()
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("container_root = %q", filepath.Join(scratch, "writable"))})
	image := d.PullBusybox(t)
	config := harness.Pod("healthy")
	config.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 24680}}
	pod := d.RunPod(t, config)
	c := d.Run(t, pod, harness.Container("main", image, "sleep", "1000"), config)

	// A healthy node with a pod: nothing is found, with and without a running kurid.
	if out, errs, code := d.Kuri(t, "doctor"); code != 0 || !strings.Contains(out, "nothing is wrong") {
		t.Errorf("a healthy node: exit code %d: %s%s", code, out, errs)
	}
	d.Stop(t)
	if r, code := doctor(t, d, withoutKurid); code != 0 || len(r.Damages) > 0 || r.Serving {
		t.Errorf("a healthy node without kurid: exit code %d: %+v", code, r)
	}
	d.Continue(t)

	// Parts removed from the network of a running pod are restored.
	table := kuriTable(t)
	run(t, "nft", "delete", "table", "inet", table)
	if r, code := doctor(t, d, "--fix"); code != 0 || len(r.Damages) != 1 || !r.Damages[0].Fixed ||
		!strings.Contains(r.Damages[0].Problem, "is gone") {
		t.Errorf("a table that is gone: exit code %d: %+v", code, r)
	}
	if kuriTable(t) != table || !strings.Contains(run(t, "nft", "list", "table", "inet", table), "24680") {
		t.Error("the host port is not there again")
	}

	foreign := othersThings(t, scratch)
	messes := slices.Concat(kernelMesses(t, d), diskMesses(t, d, pod, scratch))
	for _, m := range messes {
		m.make(t)
	}
	r, code := doctor(t, d)
	if code != 1 || !r.Serving {
		t.Errorf("exit code %d, serving %v", code, r.Serving)
	}
	matchDamages(t, messes, r.Damages)
	if out, _, code := d.Kuri(t, "doctor"); code != 1 || !strings.Contains(out, "what to do: ") {
		t.Errorf("exit code %d: %s", code, out)
	}

	r, code = doctor(t, d, "--fix")
	if code != 1 { // some damage cannot be repaired
		t.Errorf("--fix: exit code %d", code)
	}
	for _, dm := range r.Damages {
		if dm.Fixable != dm.Fixed || dm.FixError != "" {
			t.Errorf("--fix of %s %s: fixed %v, %s", dm.Check, dm.Subject, dm.Fixed, dm.FixError)
		}
	}
	for _, m := range messes {
		if m.there() == m.fixable {
			t.Errorf("after --fix: %s %s is there: %v", m.check, m.subject, m.there())
		}
	}
	r, _ = doctor(t, d)
	for _, dm := range r.Damages {
		if dm.Fixable {
			t.Errorf("after --fix this is found: %+v", dm)
		}
	}
	// Nothing else was changed.
	for what, there := range foreign {
		if !there() {
			t.Errorf("--fix took what is not Kuri's: %s", what)
		}
	}
	if out := d.Output(t, c, "echo", "alive"); out != "alive\n" {
		t.Errorf("the container says %q", out)
	}
	if s := d.PodStatus(t, pod); s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod is %v", s.State)
	}
}

// matchDamages fails t unless each mess matches exactly one damage and each damage a mess.
func matchDamages(t *testing.T, messes []mess, found []damage) {
	t.Helper()
	for _, m := range messes {
		n := slices.IndexFunc(found,
			func(dm damage) bool { return dm.Check == m.check && strings.Contains(dm.Subject, m.subject) })
		if n < 0 {
			t.Errorf("not found: %s %s", m.check, m.subject)
			continue
		}
		if dm := found[n]; dm.Fixable != m.fixable || dm.Problem == "" || dm.Advice == "" {
			t.Errorf("fixable is to be %v: %+v", m.fixable, dm)
		}
		found = slices.Delete(slices.Clone(found), n, n+1)
	}
	for _, dm := range found {
		t.Errorf("found, and nobody made it: %+v", dm)
	}
}

// kernelMesses returns the messes in the kernel.
func kernelMesses(t *testing.T, d *harness.Daemon) []mess {
	table := kuriTable(t)
	netns, busy, group, crowd := "/run/netns/kuri-"+id("a"), "/run/netns/kuri-"+id("b"), "kuri-"+id("c"), "kuri-"+id("d")
	point := filepath.Join(d.State, "mounts", id("e"))
	mount := filepath.Join(d.State, "pods", id("f"))
	sleeper := func(t *testing.T, args ...string) int {
		cmd := exec.Command(args[0], args[1:]...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd.Process.Pid
	}
	return []mess{
		{"network namespaces", netns, true, func(t *testing.T) { pinNetns(t, netns) }, exists(netns)},
		{"network namespaces", busy, false, func(t *testing.T) {
			pinNetns(t, busy)
			sleeper(t, "nsenter", "--net="+busy, "sleep", "1000")
			t.Cleanup(func() { unpinNetns(t, busy) })
			harness.FindProcess(t, "sleep 1000")
		}, exists(busy)},
		{"network", "link kuri12345678901", true, func(t *testing.T) {
			run(t, "ip", "link", "add", "kuri12345678901", "type", "veth", "peer", "name", "peer0")
			run(t, "ip", "link", "set", "kuri12345678901", "master", "kuri0")
		}, exists("/sys/class/net/kuri12345678901")},
		{"network", "nftables inet " + table, true, func(t *testing.T) {
			run(t, "nft", "add", "element", "inet", table, "any4", "{ tcp . 9999 : 10.9.9.9 . 80 }")
		}, func() bool { return strings.Contains(run(t, "nft", "list", "table", "inet", table), "10.9.9.9") }},
		{"mounts", mount, true, func(t *testing.T) {
			mkdirAll(t, mount)
			run(t, "mount", "-t", "tmpfs", "mess", mount)
		}, func() bool { return strings.Contains(strings.Join(harness.MountPoints(t), "\n"), mount) }},
		{"directories of pods", mount, true, func(*testing.T) {}, exists(mount)},
		{"mount points", point, true, func(t *testing.T) { mkdirAll(t, filepath.Join(point, "rootfs")) }, exists(point)},
		{"cgroups", "/" + group, true, func(t *testing.T) { makeCgroups(t, group) },
			func() bool { return len(cgroupsNamed(group)) > 0 }},
		{"processes", crowd, false, func(t *testing.T) {
			makeCgroups(t, crowd)
			t.Cleanup(func() { harness.RemoveCgroup(t, "/"+crowd) })
			pid := sleeper(t, "sleep", "1001")
			for _, dir := range cgroupsNamed(crowd) {
				harness.Write(t, dir, "cgroup.procs", strconv.Itoa(pid))
			}
			t.Cleanup(func() {
				for _, dir := range cgroupsNamed(crowd) {
					harness.Eventually(t, 5*time.Second, "the cgroup is empty", func() error {
						if text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err != nil || len(text) > 0 {
							return fmt.Errorf("%s %v", text, err)
						}
						return nil
					})
				}
			})
			t.Cleanup(func() { exec.Command("kill", "-9", strconv.Itoa(pid)).Run() })
		}, func() bool { return len(cgroupsNamed(crowd)) > 0 }},
	}
}

// kuriTable returns the name of the built-in network's nftables table, or "" if there is none.
func kuriTable(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(run(t, "nft", "list", "tables")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "table inet "); ok && strings.HasPrefix(name, "kuri-") &&
			!strings.HasSuffix(name, "-apart") {
			return name
		}
	}
	return ""
}

// diskMesses returns the messes on the disk.
func diskMesses(t *testing.T, d *harness.Daemon, pod, scratch string) []mess {
	record := filepath.Join(d.Root, "pods", pod, "pod.json")
	rest := filepath.Join(d.Root, "pods", id("1"))
	lease := filepath.Join(d.State, "network", "leases", id("2")+".json.damaged")
	writable := filepath.Join(scratch, "writable", "containers", id("3"))
	layer := filepath.Join(d.Root, "layers", id("4"))
	image := filepath.Join(d.Root, "images", id("5")+".json.damaged")
	socket := filepath.Join(d.State, "old.sock")
	runFiles := "/var/lib/kuri-run/12345678-1234-1234-1234-123456789012"
	logs := "/var/log/kuri-run/default_gone_12345678-1234-1234-1234-123456789012"
	oldLogs := "/var/log/pods/default_gone_12345678-1234-1234-1234-123456789012" // kept there by an earlier kuri
	write := func(path string) func(*testing.T) {
		return func(t *testing.T) { harness.Write(t, filepath.Dir(path), filepath.Base(path), "{") }
	}
	recipes, err := filepath.Glob(filepath.Join(d.Root, "layers", "*", "tar.recipe"))
	if err != nil || len(recipes) == 0 {
		t.Fatalf("the image's layers have no recipe: %v", err)
	}
	broken := filepath.Dir(recipes[0])
	return []mess{
		{"records", record + ".damaged", true, write(record + ".damaged"), exists(record + ".damaged")},
		{"records", lease, true, write(lease), exists(lease)},
		{"directories of pods", rest, true,
			func(t *testing.T) { mkdirAll(t, filepath.Join(rest, "containers", id("6"), "upper")) }, exists(rest)},
		{"directories of pods", rest + "/containers/" + id("6"), true, func(*testing.T) {}, exists(rest)},
		{"writable layers", writable, true, func(t *testing.T) {
			mkdirAll(t, filepath.Join(writable, "upper"))
			if err := os.Symlink(filepath.Join(d.Root, "pods", id("7")), filepath.Join(writable, "owner")); err != nil {
				t.Fatal(err)
			}
		}, exists(writable)},
		{"layers", layer, true, func(t *testing.T) { mkdirAll(t, filepath.Join(layer, "fs")) }, exists(layer)},
		{"layers", broken, false, func(t *testing.T) {
			if err := os.Rename(recipes[0], recipes[0]+".away"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Rename(recipes[0]+".away", recipes[0]) })
		}, exists(broken)},
		{"images", image, false, func(t *testing.T) {
			write(image)(t)
			t.Cleanup(func() { os.Remove(image) })
		}, exists(image)},
		{"sockets", socket, true, func(t *testing.T) {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			l.Close()
		}, exists(socket)},
		{"files of kuri run", runFiles, true, func(t *testing.T) {
			makeRunFiles(t, runFiles, d.Socket)
			mkdirAll(t, logs)
			mkdirAll(t, oldLogs)
		}, func() bool { return exists(runFiles)() || exists(logs)() || exists(oldLogs)() }},
	}
}

// othersThings creates objects that look like Kuri's but are not, and returns functions that report
// whether they still exist.
func othersThings(t *testing.T, scratch string) map[string]func() bool {
	t.Helper()
	pinNetns(t, "/run/netns/cni-1234")
	run(t, "ip", "link", "add", "kuri98765432109", "type", "veth", "peer", "name", "peer1")
	run(t, "nft", "add", "table", "inet", "of-another")
	makeCgroups(t, "another/"+id("8"))
	unclaimed := filepath.Join(scratch, "writable", "containers", id("9"), "upper")
	logs := "/var/log/pods/default_web_87654321-1234-1234-1234-123456789012"
	mkdirAll(t, unclaimed)
	mkdirAll(t, logs)
	fresh := "/var/lib/kuri-run/87654321-4321-4321-4321-123456789012" // as of a kuri run in progress
	mkdirAll(t, fresh)
	foreign := "/var/lib/kuri-run/87654321-4321-4321-4321-123456789013"
	makeRunFiles(t, foreign, "/run/containerd/containerd.sock")
	t.Cleanup(func() {
		unpinNetns(t, "/run/netns/cni-1234")
		run(t, "ip", "link", "delete", "kuri98765432109")
		run(t, "nft", "delete", "table", "inet", "of-another")
		harness.RemoveCgroup(t, "/another")
		os.RemoveAll(fresh)
		os.RemoveAll(foreign)
		os.RemoveAll(logs)
	})
	return map[string]func() bool{
		"a network namespace": exists("/run/netns/cni-1234"), "a link": exists("/sys/class/net/kuri98765432109"),
		"a table":  func() bool { return strings.Contains(run(t, "nft", "list", "tables"), "of-another") },
		"a cgroup": func() bool { return len(cgroupsNamed("another/"+id("8"))) > 0 }, "a writable layer": exists(unclaimed),
		"a log directory": exists(logs), "files of kuri run": exists(fresh),
		"files of kuri run on another runtime": exists(foreign),
	}
}

// makeRunFiles creates the directory of a pod of kuri run on the runtime of a socket, two hours old.
func makeRunFiles(t *testing.T, dir, socket string) {
	t.Helper()
	mkdirAll(t, dir)
	harness.Write(t, dir, "runtime", socket+"\n")
	if err := os.Chtimes(dir, time.Now(), time.Now().Add(-2*time.Hour)); err != nil {
		t.Fatal(err)
	}
}

// TestDoctorOfPods damages running pods: kuri doctor reports the damage and does not act.
func TestDoctorOfPods(t *testing.T) {
	s := newShell(t)
	config := harness.Pod("broken")
	pod := s.RunPod(t, config)
	s.Run(t, pod, harness.Container("main", s.image, "sleep", "1002"), config)
	pid := harness.FindProcess(t, "sleep 1002")

	// Its cgroup is removed, its network namespace unpinned.
	for _, dir := range cgroupsOf(t, pid) {
		leave(t, filepath.Dir(filepath.Dir(dir)), pid)
	}
	harness.RemoveCgroup(t, "/kuri-"+pod)
	run(t, "umount", "-l", "/run/netns/kuri-"+pod)
	r, code := doctor(t, s.Daemon, "--fix")
	if code != 1 {
		t.Errorf("exit code %d", code)
	}
	said := map[string]string{}
	for _, dm := range r.Damages {
		said[dm.Check] += dm.Subject + ": " + dm.Problem + "; " + dm.Advice
		if dm.Fixed {
			t.Errorf("it was fixed: %+v", dm)
		}
	}
	if !strings.Contains(said["pods"], "its network namespace is gone") ||
		!strings.Contains(said["pods"], "kuri rm -f id:"+pod[:13]) {
		t.Errorf("of the pod: %q", said["pods"])
	}
	if !strings.Contains(said["containers"], "its cgroup is gone") ||
		!strings.Contains(said["containers"], fmt.Sprintf("process %d goes on", pid)) {
		t.Errorf("of the container: %q", said["containers"])
	}
	if !exists(fmt.Sprintf("/proc/%d", pid))() {
		t.Error("the process was ended")
	}
	// A layer of an image and of a container that uses it is removed.
	layers, err := filepath.Glob(filepath.Join(s.Root, "layers", "*"))
	if err != nil || len(layers) == 0 {
		t.Fatal(layers, err)
	}
	away := filepath.Join(s.Dir, "away")
	if err := os.Rename(layers[0], away); err != nil {
		t.Fatal(err)
	}
	r, _ = doctor(t, s.Daemon, "--fix")
	if err := os.Rename(away, layers[0]); err != nil {
		t.Fatal(err)
	}
	var of []string
	for _, dm := range r.Damages {
		if dm.Check == "images" && strings.Contains(dm.Problem, filepath.Base(layers[0])) && !dm.Fixable {
			of = append(of, dm.Subject)
		}
	}
	if text := strings.Join(of, " "); !strings.Contains(text, "busybox") || !strings.Contains(text, "container main") {
		t.Errorf("a missing layer: %q of %+v", text, r)
	}

	// Following the advice repairs it.
	exec.Command("kill", "-9", strconv.Itoa(pid)).Run()
	if out, errs, code := s.Kuri(t, "rm", "-f", "id:"+pod[:13]); code != 0 {
		t.Errorf("kuri rm: %d %s%s", code, out, errs)
	}
	if r, code := doctor(t, s.Daemon); code != 0 {
		t.Errorf("after that: exit code %d, %+v", code, r)
	}
}

// TestDoctorWithoutDaemon repairs leftovers of a stopped kurid while its pod keeps running.
func TestDoctorWithoutDaemon(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.Pod("on")
	pod := d.RunPod(t, config)
	c := d.Run(t, pod, harness.Container("main", image, "sleep", "1000"), config)
	d.Stop(t)

	lease := filepath.Join(d.State, "network", "leases", id("2")+".json")
	harness.Write(t, filepath.Dir(lease), filepath.Base(lease),
		fmt.Sprintf(`{"version":1,"data":{"pod_id":%q,"pod":"default/gone","addresses":["10.88.255.9/16"]}}`, id("2")))
	layer := filepath.Join(d.Root, "layers", id("4"))
	mkdirAll(t, filepath.Join(layer, "fs"))
	r, code := doctor(t, d, withoutKurid, "--fix")
	fixed := map[string]bool{}
	for _, dm := range r.Damages {
		fixed[dm.Check] = dm.Fixed
	}
	if want := map[string]bool{"network": true, "layers": true}; code != 0 || r.Serving || !maps.Equal(fixed, want) {
		t.Errorf("exit code %d, %+v", code, r)
	}
	if exists(lease)() || exists(layer)() {
		t.Error("--fix has mended nothing")
	}

	// A record of a newer version looks damaged to this one and is left alone.
	newer := filepath.Join(d.Root, "pods", id("5"))
	harness.Write(t, newer, "pod.json", `{"version":99,"data":{}}`)
	if said, code := harness.RunKurid(t, "doctor", "--fix", "--config", filepath.Join(d.Dir, "config.toml")); code == 0 ||
		!strings.Contains(said, "version 99") {
		t.Errorf("a record of a newer version: exit code %d: %s", code, said)
	}
	if !exists(filepath.Join(newer, "pod.json"))() {
		t.Error("a record of a newer version was removed")
	}
	os.RemoveAll(newer)

	// A lock that outlives its owner is reported with the process that holds it. Nothing else can
	// be examined.
	lock := filepath.Join(d.State, "kurid.lock")
	heir := exec.Command("sh", "-c", "exec 9<>"+lock+"; flock 9; exec sleep 1003")
	if err := heir.Start(); err != nil {
		t.Fatal(err)
	}
	harness.FindProcess(t, "sleep 1003")
	out, errs, code := d.Kuri(t, "doctor", withoutKurid, "--kurid-config", filepath.Join(d.Dir, "config.toml"))
	if code != 2 || !strings.Contains(out, "it is still locked") ||
		!strings.Contains(out, fmt.Sprintf("end process %d (sleep)", heir.Process.Pid)) {
		t.Errorf("a stale lock: exit code %d: %s%s", code, out, errs)
	}
	heir.Process.Kill()
	heir.Wait()

	d.Continue(t)
	if out := d.Output(t, c, "echo", "alive"); out != "alive\n" {
		t.Errorf("the container says %q", out)
	}
}
