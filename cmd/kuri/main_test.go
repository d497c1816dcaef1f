package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"k8s.io/klog/v2"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// As the program's child, the test plays main up to a signal, or writes to the libraries' log.
func TestMain(m *testing.M) {
	switch os.Getenv("KURI_TEST_CHILD") {
	case "":
		os.Exit(m.Run())
	case "log":
		silenceLibraries()
		klog.ErrorS(errors.New("why"), "a library's error")
		klog.Background().Error(errors.New("why"), "a library's error")
		klog.Warning("a library's warning")
		klog.Flush()
	case "hang-up", "ignored hang-up":
		if os.Getenv("KURI_TEST_CHILD") == "ignored hang-up" {
			signal.Ignore(syscall.SIGHUP)
		}
		ctx, stop := interruptible()
		_ = syscall.Kill(os.Getpid(), syscall.SIGHUP)
		_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
		<-ctx.Done()
		var by cli.Interrupt
		errors.As(context.Cause(ctx), &by)
		stop()
		os.Exit(cli.ExitSignal + int(by.Signal))
	}
}

func child(t *testing.T, what string) (said string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), "KURI_TEST_CHILD="+what)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// Nothing of what Kubernetes' libraries log reaches the terminal.
func TestLibrariesAreSilent(t *testing.T) {
	if said, code := child(t, "log"); code != 0 || strings.TrimSpace(said) != "" {
		t.Errorf("exit code %d: %s", code, said)
	}
}

// A closed terminal ends the program as Ctrl-C does, so that it cleans up; under nohup it does not.
func TestHangUp(t *testing.T) {
	if said, code := child(t, "hang-up"); code != cli.ExitSignal+int(syscall.SIGHUP) &&
		code != cli.ExitSignal+int(syscall.SIGTERM) {
		t.Errorf("exit code %d: %s", code, said)
	}
	if said, code := child(t, "ignored hang-up"); code != cli.ExitSignal+int(syscall.SIGTERM) {
		t.Errorf("under nohup: exit code %d: %s", code, said)
	}
}
