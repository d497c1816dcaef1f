package harness

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Kuri runs bin/kuri against the daemon and returns its standard output, standard error and exit code.
func (d *Daemon) Kuri(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(Bin("kuri"), args...)
	cmd.Env = append(os.Environ(), d.Env()...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run kuri: %v", err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// Env returns the variables by which kuri and crictl find the daemon.
func (d *Daemon) Env() []string {
	return []string{"CONTAINER_RUNTIME_ENDPOINT=unix://" + d.Socket, "IMAGE_SERVICE_ENDPOINT=unix://" + d.ImageSocket}
}

// RunKurid runs a kurid that must exit by itself within a few seconds, and returns its output and exit code.
func RunKurid(t testing.TB, flags ...string) (said string, code int) {
	t.Helper()
	need(t)
	return runKurid(t, Bin("kurid"), flags...)
}

func runKurid(t testing.TB, program string, flags ...string) (said string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patient(time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, program, flags...)
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("kurid %q serves; it must refuse. It said:\n%s", flags, out)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run kurid (is it built? make): %v", err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// Bin returns the path of a program built by make. KURI_BIN names a directory other than bin/.
func Bin(program string) string {
	if dir := os.Getenv("KURI_BIN"); dir != "" {
		return filepath.Join(dir, program)
	}
	return filepath.Join(Repository(), "bin", program)
}

// tempDir is t.TempDir with a short name: it holds sockets, whose paths are limited to 107 bytes.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kuri")
	if err != nil {
		t.Fatal(err)
	}
	// Root in a user namespace must be able to reach its root filesystem.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the directories of the daemon: %v", err)
		}
	})
	return dir
}
