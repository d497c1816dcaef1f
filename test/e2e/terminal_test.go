package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// terminal is a kuri that runs on a pseudoterminal of the test, as in a user's window.
type terminal struct {
	t     *testing.T
	cmd   *exec.Cmd
	fd    int
	ours  *os.File // the master
	slave *os.File // kept open to read the terminal's settings
	ended chan error

	mu   sync.Mutex // guards seen
	seen bytes.Buffer
}

func onTerminal(t *testing.T, d *harness.Daemon, args ...string) *terminal {
	t.Helper()
	// Not os.OpenFile: once its descriptor is requested, its reads block forever.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	ours := os.NewFile(uintptr(fd), "ptmx")
	x := &terminal{t: t, fd: fd, ours: ours, slave: os.NewFile(peer, "pts"), ended: make(chan error, 1)}
	x.resize(80, 24)
	x.cmd = exec.Command(harness.Bin("kuri"), args...)
	x.cmd.Env = append(os.Environ(), d.Env()...)
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = x.slave, x.slave, x.slave
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { x.ended <- x.cmd.Wait() }()
	read := make(chan struct{})
	go func() {
		defer close(read)
		buf := make([]byte, 4096)
		for {
			n, err := ours.Read(buf)
			x.mu.Lock()
			x.seen.Write(buf[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		x.cmd.Process.Kill()
		x.slave.Close()
		x.ours.Close()
		<-read
	})
	return x
}

func (x *terminal) resize(columns, rows uint16) {
	x.t.Helper()
	if err := unix.IoctlSetWinsize(x.fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		x.t.Fatal(err)
	}
}

func (x *terminal) press(keys string) {
	x.t.Helper()
	if _, err := x.ours.WriteString(keys); err != nil {
		x.t.Fatal(err)
	}
}

// shows returns an error unless the terminal has shown want since the last expect.
func (x *terminal) shows(want string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !strings.Contains(x.seen.String(), want) {
		return fmt.Errorf("no %q in %q", want, x.seen.String())
	}
	return nil
}

// expect waits until the terminal shows want after the end of the last expect.
func (x *terminal) expect(want string) {
	x.t.Helper()
	for deadline := time.Now().Add(harness.Patient(30 * time.Second)); ; time.Sleep(10 * time.Millisecond) {
		x.mu.Lock()
		_, after, ok := strings.Cut(x.seen.String(), want)
		if ok {
			x.seen.Reset()
			x.seen.WriteString(after)
		}
		seen := x.seen.String()
		x.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			x.t.Fatalf("the terminal does not show %q but %q", want, seen)
		}
	}
}

// exit waits for kuri to exit and returns its exit code.
func (x *terminal) exit() int {
	x.t.Helper()
	select {
	case <-x.ended:
	case <-time.After(harness.Patient(10 * time.Second)):
		x.t.Fatal("kuri does not end")
	}
	return x.cmd.ProcessState.ExitCode()
}

// cooked reports whether the terminal has its initial settings: echo, and Ctrl-C as a signal.
func (x *terminal) cooked() bool {
	x.t.Helper()
	set, err := unix.IoctlGetTermios(int(x.slave.Fd()), unix.TCGETS)
	if err != nil {
		x.t.Fatal(err)
	}
	return set.Lflag&(unix.ECHO|unix.ICANON|unix.ISIG) == unix.ECHO|unix.ICANON|unix.ISIG
}

// kuri exec -it with a user who resizes the window and presses Ctrl-C, a restart of the daemon, and
// a SIGTERM.
func TestExecOnATerminal(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.Pod("term")
	pod := d.RunPod(t, config)
	id := d.Run(t, pod, harness.Container("box", image, "sleep", "1000"), config)

	x := onTerminal(t, d, "exec", "-it", id, "--", "sh")
	x.press("echo size $(stty size)\r")
	x.expect("size 24 80")
	x.resize(133, 41)
	harness.Eventually(t, 10*time.Second, "the new size is there", func() error { // it arrives independently of the input
		x.press("echo size $(stty size)\r")
		time.Sleep(50 * time.Millisecond)
		return x.shows("size 41 133")
	})
	if x.cooked() {
		t.Error("kuri keeps keys for itself")
	}

	// Ctrl-C goes to the command, not to kuri.
	x.press("trap 'echo tra''pped' INT\r")
	x.press("sleep 62346\r")
	harness.Eventually(t, 10*time.Second, "the command runs", func() error {
		if len(harness.Processes(t, "sleep 62346")) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	x.press("\x03")
	x.expect("trapped")

	// A restart of the daemon ends no stream.
	d.Restart(t)
	x.press("echo still $((40+2))\r")
	x.expect("still 42")
	x.press("exit 7\r")
	if code := x.exit(); code != 7 || !x.cooked() {
		t.Errorf("exit code %d, the terminal is as before: %t", code, x.cooked())
	}

	// SIGTERM ends kuri, which restores the terminal, and ends the command.
	y := onTerminal(t, d, "exec", "-it", id, "--", "sh", "-c", "echo here; exec sleep 4321")
	y.expect("here")
	if err := y.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := y.exit(); code != 128+15 || !y.cooked() {
		t.Errorf("after SIGTERM: exit code %d, the terminal is as before: %t", code, y.cooked())
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, errs, _ := d.Kuri(t, "exec", id, "--", "ps")
		if !strings.Contains(out, "4321") && strings.Contains(out, "sleep 1000") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("what was executed goes on: %s%s", out, errs)
		}
	}

	// The command ends with its container, and the terminal is restored.
	z := onTerminal(t, d, "exec", "-it", id, "--", "sh", "-c", "echo here; exec sleep 1000")
	z.expect("here")
	d.RemovePod(t, pod)
	if code := z.exit(); code == 0 || !z.cooked() {
		t.Errorf("after its container: exit code %d, the terminal is as before: %t", code, z.cooked())
	}
}

// A command on a terminal has TERM, unless the container sets it. Other commands have the
// container's environment.
func TestTermOfAnExec(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.Pod("term")
	pod := d.RunPod(t, config)
	for term, want := range map[string]string{"": "xterm", "vt100": "vt100"} {
		c := harness.Container("main"+term, image, "sleep", "1000")
		if term != "" {
			c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: "TERM", Value: []byte(term)})
		}
		id := d.Run(t, pod, c, config)
		x := onTerminal(t, d, "exec", "-it", id, "--", "sh", "-c", `stty -onlcr; echo "TERM is $TERM, HOME is $HOME"`)
		x.expect("TERM is " + want + ", HOME is /root")
		if code := x.exit(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		if out := d.Output(t, id, "sh", "-c", "echo -$TERM-"); out != "-"+term+"-\n" {
			t.Errorf("without a terminal: %q", out)
		}
	}
}

// A container that mounts the node's /dev can have a terminal, which is mounted over the node's
// /dev/console. That needs permission to open /dev/console.
func TestTerminalOnTheNodesDev(t *testing.T) {
	s := newShell(t)
	id := s.run(t, func(c *container, _ *security) {
		c.Tty, c.Mounts = true, []*runtimeapi.Mount{{HostPath: "/dev", ContainerPath: "/dev"}}
	}, "sh", "-c", "tty; sleep 1000")
	harness.Eventually(t, 10*time.Second, "it says its terminal", func() error {
		if out := strings.TrimSpace(s.LogText(t, id, "stdout")); !strings.HasPrefix(out, "/dev/") {
			return fmt.Errorf("it says %q", out)
		}
		return nil
	})
	x := onTerminal(t, s.Daemon, "exec", "-it", id, "--", "sh", "-c", "tty && echo $TERM")
	x.expect("/dev/pts/")
	x.expect("xterm")
	if code := x.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
