package harness

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// Revive starts kurid again after it has died by itself.
func (d *Daemon) Revive(t testing.TB) {
	t.Helper()
	d.Runtime.Close()
	d.Images.Close()
	select {
	case <-d.ended:
	case <-time.After(Patient(20 * time.Second)):
		t.Fatal("kurid has not died")
	}
	d.start(t)
}

// Restart is Stop and Continue.
func (d *Daemon) Restart(t testing.TB) {
	t.Helper()
	d.Stop(t)
	d.Continue(t)
}

// Replace asks kurid to exit and starts the next one as soon as the first has released its
// directories. That may be long before the first has answered all calls in progress. The returned
// function waits for the first to exit.
func (d *Daemon) Replace(t testing.TB) (ended func() error) {
	t.Helper()
	return d.replace(t, func() {
		if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Errorf("end kurid: %v", err)
		}
	})
}

// HandOver does the same as Replace with kurid hand-over, as systemd's units do: when that returns,
// the directories are released.
func (d *Daemon) HandOver(t testing.TB) (ended func() error) {
	t.Helper()
	return d.replace(t, func() {
		pid := strconv.Itoa(d.cmd.Process.Pid)
		if said, code := runKurid(t, d.program(), "hand-over", pid); code != 0 {
			t.Errorf("kurid hand-over %s: exit code %d: %s", pid, code, said)
		}
		for _, dir := range []string{d.Root, d.State} {
			if by := lockedBy(filepath.Join(dir, "kurid.lock")); by != 0 {
				t.Errorf("kurid hand-over %s has returned, and process %d has %s", pid, by, dir)
			}
		}
	})
}

func (d *Daemon) replace(t testing.TB, ask func()) (ended func() error) {
	t.Helper()
	d.Runtime.Close()
	d.Images.Close()
	old := d.ended
	ask()
	Eventually(t, 20*time.Second, "kurid gives its directories up", func() error {
		for _, dir := range []string{d.Root, d.State} {
			if pid := lockedBy(filepath.Join(dir, "kurid.lock")); pid != 0 {
				return fmt.Errorf("process %d has %s", pid, dir)
			}
		}
		return nil
	})
	d.start(t)
	return func() error { return <-old }
}

// TakeOver starts another kurid beside this one, with --replace, and waits for the old one to exit.
func (d *Daemon) TakeOver(t testing.TB) {
	t.Helper()
	d.Runtime.Close()
	d.Images.Close()
	old, ended, flags := d.cmd, d.ended, d.flags
	d.flags = append(slices.Clone(flags), "--replace")
	d.start(t)
	d.flags = flags
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("the kurid that was replaced said: %v", err)
		}
	case <-time.After(Patient(60 * time.Second)):
		t.Errorf("kurid, process %d, does not end when it is replaced", old.Process.Pid)
		old.Process.Kill()
	}
}
