package holder

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const source = "../../cmd/kuri-holder"

// compiled returns the program of a holder with the sanitizers, which end it at the first fault of
// memory or arithmetic.
var compiled = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "h")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "kuri-holder")
	cc := exec.Command("cc", "-Wall", "-Wextra", "-Werror", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover",
		"-o", program, source+"/holder.c")
	if out, err := cc.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	return os.ReadFile(program)
})

// build writes the holder's program into a directory of the test's own. Its name is short: a socket
// lies in it.
func build(t testing.TB) (program, state string) {
	t.Helper()
	state, err := os.MkdirTemp("", "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	body, err := compiled()
	if err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(state, "kuri-holder")
	if err := os.WriteFile(program, body, 0o755); err != nil {
		t.Fatal(err)
	}
	return program, state
}

// start starts the holder with a keeper that is a shell script, and returns a client when the holder serves.
func start(t testing.TB, script string) (c *Client, holder *exec.Cmd, state string) {
	t.Helper()
	program, state := build(t)
	c, holder = begin(t, program, state, script, nil)
	return c, holder, state
}

func begin(t testing.TB, program, state, script string, gate io.Reader) (*Client, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command(program, "--state", state, "--", "/bin/sh", "-c", script)
	cmd.Env = append(os.Environ(), "STATE="+state)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = gate, os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its keepers are in its process group
		cmd.Wait()
		if log, err := os.ReadFile(filepath.Join(state, "keeper.log")); t.Failed() && err == nil {
			t.Logf("keeper.log:\n%s", log)
		}
	})
	c := Connect(state)
	t.Cleanup(c.Close)
	eventually(t, "the holder serves", func() bool { _, err := c.Info(); return err == nil })
	return c, cmd
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("never: %s", what)
		}
	}
}

// keeperOf waits for a keeper other than old.
func keeperOf(t testing.TB, c *Client, old int) int {
	t.Helper()
	var info Info
	eventually(t, "a keeper other than "+strconv.Itoa(old)+" runs", func() bool {
		var err error
		info, err = c.Info()
		return err == nil && info.Keeper != 0 && info.Keeper != old
	})
	return info.Keeper
}

const idle = "exec sleep 1000"

func descriptors(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// keeperRuns waits for a keeper other than old that runs the program, and returns its pid.
func keeperRuns(t *testing.T, c *Client, old int, program string) int {
	t.Helper()
	if real, err := filepath.EvalSymlinks(program); err == nil {
		program = real
	}
	pid := keeperOf(t, c, old)
	eventually(t, "the keeper runs "+program, func() bool { return executable(pid) == program })
	return pid
}

func executable(pid int) string {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return exe
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	body, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, body, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func soft(t *testing.T, pid int) string { return openFiles(t, pid)[3] }

func hard(t *testing.T, pid int) string { return openFiles(t, pid)[4] }

func openFiles(t *testing.T, pid int) []string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); strings.HasPrefix(s.Text(), "Max open files") {
			return fields
		}
	}
	t.Fatal("no such limit")
	return nil
}
