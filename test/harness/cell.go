package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// inCell is set in the environment of a test program that runs in its cell.
const inCell = "KURI_TEST_IN_CELL"

// The main thread cannot exit, so it must never enter another namespace (see namespace.OnThread).
func init() { runtime.LockOSThread() }

// Main runs the tests of a package in a cell of their own and exits. It is called by TestMain.
// Without root the tests run without a cell and skip themselves.
func Main(m *testing.M) {
	switch {
	case os.Getuid() != 0:
		os.Exit(m.Run())
	case !InCell():
		os.Exit(enterCell())
	}
	if err := hideHost(); err != nil {
		fmt.Fprintln(os.Stderr, "harness: prepare the cell:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// enterCell runs this program again in a cell and returns its exit code.
func enterCell() int {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	// The cell must not outlive this process. The kernel ties that to the thread that starts it.
	runtime.LockOSThread()
	cmd := exec.Command(filepath.Join(Repository(), "bench", "cell"),
		append([]string{"unshare", "--ipc", "--uts", self}, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), inCell+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() > 0 {
			return cmd.ProcessState.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "harness: run the tests in a cell:", err)
		return 1
	}
	return 0
}

// hideHost gives the cell a writable /etc, /opt and /var/lib, with /var/lib/kuri on the disk.
func hideHost() error {
	scratch := os.Getenv("CELL_DIR")
	for _, dir := range []string{"/etc", "/opt", "/var/lib"} {
		upper, work := filepath.Join(scratch, "upper", dir), filepath.Join(scratch, "work", dir)
		if err := mkdirs(upper, work); err != nil {
			return err
		}
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", dir, upper, work)
		if err := syscall.Mount("overlay", dir, "overlay", 0, options); err != nil {
			return fmt.Errorf("mount an overlay over %s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/etc/kuri", "/etc/cni", "/opt/cni", "/etc/containerd"} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	lib := filepath.Join(scratch, "kuri")
	if err := mkdirs(lib, "/var/lib/kuri"); err != nil {
		return err
	}
	if err := syscall.Mount(lib, "/var/lib/kuri", "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind /var/lib/kuri: %w", err)
	}
	return nil
}

func mkdirs(dirs ...string) error {
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Repository returns the root of the source tree.
func Repository() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) { // -trimpath
		dir, err := os.Getwd()
		for ; err == nil && dir != "/"; dir = filepath.Dir(dir) {
			if _, err := os.Stat(filepath.Join(dir, "bench", "cell")); err == nil {
				return dir
			}
		}
		panic("harness: run the tests inside the source tree")
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// need skips t, with the reason, if the tests cannot run here.
func need(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it starts the real daemon, with namespaces, networks and cgroups")
	}
	if !InCell() {
		t.Fatal("harness.Main is not called by this package's TestMain")
	}
}

// InCell reports whether this program already runs in its cell.
func InCell() bool { return os.Getenv(inCell) != "" }
