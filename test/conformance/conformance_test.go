package conformance

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/critest"
	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/suite"
)

// left are the marks of specs that are not run: they want the node for themselves, or much time.
const left = `\[Serial\]|\[Slow\]|\[Flaky\]|\[Disruptive\]`

// limit is how long the suite may take.
const limit = 100 * time.Minute

// TestMain builds what is missing outside of the cell, where packages can be had.
func TestMain(m *testing.M) {
	if os.Getuid() == 0 && os.Getenv("KURI_CONFORMANCE") != "" {
		prepare := ownDirectories
		if !harness.InCell() {
			prepare = func() error { _, err := critest.Busybox(); return err }
		}
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "conformance:", err)
			os.Exit(1)
		}
	}
	harness.Main(m)
}

// ownDirectories gives the cell a /tmp of its own, on the disk: the suite and its pods write to it.
// What the machine has of systemd is hidden: the suite would start its kubelet by it.
func ownDirectories() error {
	tmp := filepath.Join(os.Getenv("CELL_DIR"), "tmp")
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := syscall.Mount(tmp, "/tmp", "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount a /tmp of our own: %w", err)
	}
	if path, err := exec.LookPath("systemd-run"); err == nil {
		return syscall.Mount("/dev/null", path, "", syscall.MS_BIND, "")
	}
	return nil
}

func TestConformance(t *testing.T) {
	programs := os.Getenv("KURI_CONFORMANCE")
	if programs == "" {
		t.Skip("KURI_CONFORMANCE is not set: test/conformance/run builds the suite and sets it")
	}
	keepSysctls(t)
	addAddress(t)
	kubeletDirectory(t)
	d := startDaemon(t, programs)
	dir := t.TempDir()
	reports := os.Getenv("CONFORMANCE_REPORTS")
	if reports == "" {
		reports = filepath.Join(dir, "reports")
	}
	run(t, d, programs, dir, reports)

	specs, err := suite.ReadReport(filepath.Join(reports, "junit_01.xml"), "[It] ")
	if err != nil {
		t.Fatal(err)
	}
	want, err := suite.ReadExpected("expected.txt", map[string]suite.Condition{
		"dummy": {Holds: hasDummyLinks(), Reason: "this kernel has no dummy links"},
	})
	if err != nil {
		t.Fatal(err)
	}
	suite.Compare(t, want, chosen(specs), os.Getenv("CONFORMANCE_FOCUS"))
}

// chosen are the specs that were to run; the report has all.
func chosen(all []suite.Spec) (out []suite.Spec) {
	skip := regexp.MustCompile(left)
	for _, s := range all {
		if s.Status != "skipped" || strings.Contains(s.Name, "[NodeConformance]") && !skip.MatchString(s.Name) {
			out = append(out, s)
		}
	}
	return out
}

// startDaemon starts kurid with a registry that has the suite's images.
func startDaemon(t *testing.T, programs string) *harness.Daemon {
	t.Helper()
	certs := t.TempDir()
	config := fmt.Sprintf("[image]\ncerts_dirs = [%q]\n[network]\nuse = \"builtin\"\n[handler.test-handler]\n", certs)
	d := harness.Start(t, harness.Options{NoPods: true, Config: config})
	t.Cleanup(func() { removePods(t, d) })
	for _, host := range registryHosts {
		harness.Write(t, certs, host+"/hosts.toml", fmt.Sprintf("server = \"http://%[1]s\"\n\n"+
			"[host.\"http://%[1]s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", d.Registry.Host))
	}
	busybox, err := critest.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	content, err := images(busybox, filepath.Join(programs, "agnhost"), os.Getenv("KURI_KUBERNETES"))
	if err != nil {
		t.Fatal(err)
	}
	for name, img := range content {
		_, repository, _ := strings.Cut(name, "/")
		d.Registry.Push(t, repository, img)
		d.Pull(t, name)
	}
	return d
}

// removePods removes what the suite leaves: it ends its kubelet before the last pods have gone.
func removePods(t *testing.T, d *harness.Daemon) {
	ctx := context.Background() // that of the test has ended
	list, err := d.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Errorf("list the pods that are left: %v", err)
		return
	}
	for _, p := range list.Items {
		if _, err := d.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			t.Errorf("stop pod %s: %v", p.Metadata.Name, err)
		}
		if _, err := d.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id}); err != nil {
			t.Errorf("remove pod %s: %v", p.Metadata.Name, err)
		}
	}
}

// run runs the suite and waits for it. That specs fail is found in its report.
func run(t *testing.T, d *harness.Daemon, programs, dir, reports string) {
	t.Helper()
	if err := os.MkdirAll(reports, 0o755); err != nil {
		t.Fatal(err)
	}
	// ginkgo runs the suite in the directory of its program, and it writes much there.
	program := filepath.Join(dir, "e2e_node.test")
	if err := os.Symlink(filepath.Join(programs, "e2e_node.test"), program); err != nil {
		t.Fatal(err)
	}
	config := harness.Write(t, dir, "kubelet.yaml",
		fmt.Sprintf(configuration, harness.Write(t, dir, "resolv.conf", "nameserver 127.0.0.1\n")))
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patient(limit))
	defer cancel()
	focus := regexp.QuoteMeta(os.Getenv("CONFORMANCE_FOCUS"))
	cmd := exec.CommandContext(ctx, filepath.Join(programs, "ginkgo"), "-procs=10", "-no-color", "-succinct",
		"-timeout="+harness.Patient(limit).String(), "-skip="+left,
		"-focus="+fmt.Sprintf(`\[NodeConformance\].*%[1]s|%[1]s.*\[NodeConformance\]`, focus), program, "--",
		"--container-runtime-endpoint=unix://"+d.Socket, "--image-service-endpoint=unix://"+d.ImageSocket,
		"--k8s-bin-dir="+programs, "--kubelet-config-file="+config, "--kubelet-flags=--node-ip="+nodeAddress,
		"--node-name=node", "--prepull-images=false", "--report-dir="+reports)
	cmd.Dir = dir
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it writes its report yet
	cmd.WaitDelay = time.Minute
	log, err := os.Create(filepath.Join(reports, "suite.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		t.Logf("the suite says: %v", err)
	}
	if _, err := os.Stat(filepath.Join(reports, "junit_01.xml")); err != nil {
		said, _ := os.ReadFile(log.Name())
		t.Fatalf("the suite left no report: %s", said[max(0, len(said)-16<<10):])
	}
}
