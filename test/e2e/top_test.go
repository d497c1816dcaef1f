package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

var sequence = regexp.MustCompile(`\x1b\[[?0-9;]*[a-zA-Z]`)

// frame waits until the last frame of a program satisfies wanted, and returns it without terminal sequences.
func (x *terminal) frame(what string, wanted func(string) bool) string {
	x.t.Helper()
	var last string
	harness.Eventually(x.t, 30*time.Second, what, func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		const begin, end = "\x1b[H\x1b[", "\x1b[J"
		all := x.seen.String()
		to := strings.LastIndex(all, end)
		if to < 0 {
			return errors.New("nothing was drawn")
		}
		from := strings.LastIndex(all[:to], "\x1b[H")
		last = sequence.ReplaceAllString(all[max(from, 0):to], "")
		if !wanted(last) {
			return fmt.Errorf("the screen is\n%s", last)
		}
		return nil
	})
	return last
}

func has(texts ...string) func(string) bool {
	return func(s string) bool {
		for _, text := range texts {
			if !strings.Contains(s, text) {
				return false
			}
		}
		return true
	}
}

// settings returns all settings of the terminal.
func (x *terminal) settings() unix.Termios {
	x.t.Helper()
	set, err := unix.IoctlGetTermios(int(x.slave.Fd()), unix.TCGETS)
	if err != nil {
		x.t.Fatal(err)
	}
	return *set
}

// kuri top on a terminal: its keys, a resized window, a daemon that stops and returns, and a
// terminal that is restored whichever way it exits.
func TestTop(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	for _, name := range []string{"idle", "busy"} {
		config := harness.Pod(name)
		command := []string{"sleep", "1000"}
		if name == "busy" {
			command = []string{"sh", "-c", "while :; do :; done"}
		}
		c := harness.Container(name+"-main", image, command...)
		c.Linux = &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{CpuPeriod: 100000,
			CpuQuota: 20000}}
		d.Run(t, d.RunPod(t, config), c, config)
	}
	x := onTerminal(t, d, "top", "-d", "500ms")
	before := onTerminal(t, d, "version").settings() // of a new terminal
	x.resize(140, 30)
	cpu := regexp.MustCompile(`(?m)busy +1/1 +([1-9][0-9]*\.[0-9])`)
	first := x.frame("a busy pod uses cpu, and comes first", func(s string) bool {
		return cpu.MatchString(s) && strings.Index(s, "busy") < strings.Index(s, "idle ")
	})
	if !has("kuri top  kuri ", "pods 2, ready 2", "POD ", "pods by cpu", "every 0.5s")(first) {
		t.Errorf("the screen is\n%s", first)
	}
	if set := x.settings(); set.Lflag&(unix.ECHO|unix.ICANON) != 0 {
		t.Error("the terminal echoes keys")
	}

	x.press("N")
	x.frame("sorted by name", has("pods by name"))
	x.press("RP\x1b[B") // and an arrow, whose escape sequence is not a key
	x.frame("sorted by cpu", has("pods by cpu  "))
	x.press("c/idle-m")
	x.frame("containers, filtered as it is typed", func(s string) bool {
		return has("filter: idle-m_", "idle-main")(s) && !strings.Contains(s, "busy-main")
	})
	x.press("\x1b")
	x.frame("without the filter", has("busy-main", "idle-main", "running"))
	x.press("p\x1b[F\r") // the containers of the last pod
	x.frame("containers of one pod",
		func(s string) bool { return has("containers of ")(s) && strings.Count(s, "-main") == 1 })
	x.press("\x1bh")
	x.frame("help", has("Ctrl-C  quit"))
	x.press(" d0.7\r")
	x.frame("another delay", has("every 0.7s"))
	x.press("d99999\r")
	x.frame("a delay that cannot be", has("expected seconds"))
	x.resize(80, 12)
	x.frame("the new size is used", func(s string) bool {
		lines := strings.Split(strings.TrimSpace(s), "\r\n")
		for _, l := range lines {
			if len([]rune(l)) > 80 {
				return false
			}
		}
		return len(lines) <= 12 && strings.Contains(s, "TX/s") && !strings.Contains(s, "IOw") && strings.Contains(s, "busy")
	})

	d.Kill9(t)
	x.frame("the daemon is gone", has("NO NEW SAMPLE", "busy"))
	d.Continue(t)
	x.frame("the daemon is back",
		func(s string) bool { return !strings.Contains(s, "NO NEW SAMPLE") && cpu.MatchString(s) })

	ended := func(x *terminal, how string, want int) {
		t.Helper()
		if code := x.exit(); code != want || x.settings() != before {
			t.Errorf("%s: exit code %d, want %d; the terminal is as before: %t", how, code, want, x.settings() == before)
		}
		x.expect("\x1b[?25h\x1b[?1049l")
	}
	x.press("q")
	ended(x, "q", 0)
	for how, end := range map[string]struct {
		do   func(*terminal)
		code int
	}{
		"Ctrl-C":  {func(x *terminal) { x.press("\x03") }, 0},
		"SIGINT":  {func(x *terminal) { x.cmd.Process.Signal(syscall.SIGINT) }, 130},
		"SIGTERM": {func(x *terminal) { x.cmd.Process.Signal(syscall.SIGTERM) }, 143},
		"SIGHUP":  {func(x *terminal) { x.cmd.Process.Signal(syscall.SIGHUP) }, 129},
		"SIGQUIT": {func(x *terminal) { x.cmd.Process.Signal(syscall.SIGQUIT) }, 131},
		"Ctrl-Z without a shell, q": {func(x *terminal) {
			x.press("\x1a")
			x.expect("\x1b[?1049l")
			x.expect("\x1b[?1049h")
			x.press("q")
		}, 0},
	} {
		y := onTerminal(t, d, "top", "-n", "1000")
		y.frame("it runs", has("pods by cpu"))
		end.do(y)
		ended(y, how, end.code)
	}
	z := onTerminal(t, d, "top", "-n", "1")
	ended(z, "-n 1", 0)
}

// kuri top -b is for scripts.
func TestTopBatch(t *testing.T) {
	s := newShell(t)
	s.run(t, nil, "sleep", "1000")
	out, stderr, code := s.Kuri(t, "top", "-b", "-n", "2", "-d", "200ms", "-c")
	if code != 0 || strings.Count(out, "kuri top  kuri ") != 2 || strings.Count(out, " running  ") != 2 ||
		strings.Contains(out, "\x1b") {
		t.Errorf("exit code %d, %s%s", code, out, stderr)
	}
	if out, _, code := s.Kuri(t, "top", "-o", "jsonpath={.containers[0].state} {.pods[0].processes}"); code != 0 ||
		strings.TrimSpace(out) != "running 1" {
		t.Errorf("exit code %d, %q", code, out)
	}
	if _, stderr, code := s.Kuri(t, "top"); code != 2 || !strings.Contains(stderr, "-b prints tables") {
		t.Errorf("without a terminal: exit code %d, %s", code, stderr)
	}
}
