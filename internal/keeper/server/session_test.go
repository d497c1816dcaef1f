package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
)

// screen is an output that can be read while it is written.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *screen) await(t *testing.T, want string) {
	t.Helper()
	if !eventually(func() bool { return strings.Contains(s.String(), want) }) {
		t.Fatalf("no %q in %q", want, s)
	}
}

func TestExecReadsStdinToItsEnd(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	var stdout bytes.Buffer
	in := strings.Repeat("0123456789abcdef", 1<<19) // 8 MiB: more than the capacity of any pipe
	code, err := n.Exec(t.Context(), j.Id, []string{"sh", "-c", "cat; exit 3"}, false,
		keeper.Streams{Stdin: strings.NewReader(in), Stdout: &stdout})
	if err != nil || code != 3 || stdout.String() != in {
		t.Errorf("%d, %d bytes, %v", code, stdout.Len(), err)
	}
	// A process that does not read does not delay the session's end, and neither does its input.
	never, end := io.Pipe()
	defer end.Close()
	if code, err = n.Exec(t.Context(), j.Id, []string{"true"}, false, keeper.Streams{Stdin: never}); err != nil ||
		code != 0 {
		t.Errorf("%d %v", code, err)
	}
	n.wantNoExecCgroups(j)
}

func TestTerminalIsResized(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	in, keys := io.Pipe()
	defer keys.Close()
	sizes := make(chan keeper.Size)
	out := &screen{}
	done := make(chan error, 1)
	go func() {
		// The signal interrupts read.
		script := `trap 'stty size' WINCH; echo ready; until read x; do :; done; stty size; exit 9`
		code, err := n.Exec(t.Context(), j.Id, []string{"sh", "-c", script}, true,
			keeper.Streams{Stdin: in, Stdout: out, Resize: sizes})
		if code != 9 {
			err = errors.Join(err, fmt.Errorf("exit %d", code))
		}
		done <- err
	}()
	out.await(t, "ready")
	// Once the last one is received, the one before is set.
	for _, size := range []keeper.Size{{Width: 101, Height: 37}, {Width: 102, Height: 38}, {Width: 102, Height: 38}} {
		select {
		case sizes <- size:
		case err := <-done:
			t.Fatalf("the exec has ended before it was resized: %v, %q", err, out)
		}
	}
	io.WriteString(keys, "\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "38 102") {
		t.Errorf("%q", out)
	}
}

// A caller that reads nothing delays only its own exec, and does not use memory of the keeper or of
// this process.
func TestASlowCallerHoldsUpItsOwnExec(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	info, err := n.Info(t.Context())
	n.must(err)
	read, write := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := n.Exec(ctx, j.Id, []string{"sh", "-c", "echo begin; exec dd if=/dev/zero bs=1M count=4321"}, false,
			keeper.Streams{Stdout: write})
		done <- err
	}()
	read.Read(make([]byte, 1))
	before := memory(t, int(info.Pid))
	if code, out, _ := n.exec(j, "echo other"); code != 0 || out != "other\n" {
		t.Errorf("%d %q", code, out)
	}
	time.Sleep(300 * time.Millisecond)
	if grown := memory(t, int(info.Pid)) - before; grown > 16<<10 {
		t.Errorf("the keeper has grown by %d KB", grown)
	}
	select {
	case err := <-done:
		t.Fatalf("ended: %v", err)
	default:
	}
	cancel()
	read.Close() // like a server whose client has disconnected
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	n.wantNoProcess(j, "count=4321")
}

func TestAFailedWriteKillsTheExec(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	read, write := io.Pipe()
	read.Close()
	_, err := n.Exec(t.Context(), j.Id, []string{"sh", "-c", "echo x; sleep 4340"}, false, keeper.Streams{Stdout: write})
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v", err)
	}
	n.wantNoProcess(j, "4340")
}

type broken struct{}

func (broken) Read([]byte) (int, error)  { panic("a bug") }
func (broken) Write([]byte) (int, error) { panic("a bug") }

// A panic in the caller's reader or writer ends only that exec, and kills its process.
func TestAPanicOfTheCallerKillsTheExec(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	for name, with := range map[string]keeper.Streams{"stdin": {Stdin: broken{}}, "stdout": {Stdout: broken{}},
		"stderr": {Stderr: broken{}}} {
		for _, tty := range []bool{false, true} {
			if tty && name == "stderr" {
				continue
			}
			_, err := n.Exec(t.Context(), j.Id, []string{"sh", "-c", "echo x; echo y >&2; sleep 4341"}, tty, with)
			if err == nil || !strings.Contains(err.Error(), "a bug in Kuri") {
				t.Errorf("%s, terminal %t: %v", name, tty, err)
			}
			n.wantNoProcess(j, "4341")
		}
	}
	n.wantNoExecCgroups(j)
}

// attachment is an attach session of a test.
type attachment struct {
	screen
	stdin  *io.PipeWriter
	sizes  chan keeper.Size
	cancel context.CancelFunc
	done   chan error
	code   int32
}

func (n *node) attach(j *job, stdin bool) *attachment {
	n.t.Helper()
	a := &attachment{sizes: make(chan keeper.Size), done: make(chan error, 1)}
	with := keeper.Streams{Stdout: a, Stderr: a, Resize: a.sizes}
	if stdin {
		with.Stdin, a.stdin = io.Pipe()
		n.t.Cleanup(func() { a.stdin.Close() })
	}
	var ctx context.Context
	ctx, a.cancel = context.WithCancel(n.t.Context())
	go func() {
		var err error
		a.code, err = n.Attach(ctx, j.Id, with)
		a.done <- err
	}()
	n.t.Cleanup(a.cancel)
	return a
}

// pingUntil writes pings, which the container answers, until another attachment has received an
// answer.
func (a *attachment) pingUntil(heard <-chan struct{}) {
	for {
		io.WriteString(a.stdin, "ping\n")
		select {
		case <-heard:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestManyAttach(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), `echo early; while read x; do test $x = end && exit 7; echo got $x; echo err $x >&2; done`,
		func(j *job) { j.Stdin = true })
	n.waitOutput(j, "early")
	a, b, c := n.attach(j, true), n.attach(j, true), n.attach(j, false)
	// A client that has received something receives everything from then on.
	for _, x := range []*attachment{a, b, c} {
		if !eventually(func() bool { io.WriteString(a.stdin, "ping\n"); return strings.Contains(x.String(), "got ping") }) {
			t.Fatalf("not attached: %q", x.String())
		}
	}
	io.WriteString(b.stdin, "two\n")
	for _, x := range []*attachment{a, b, c} {
		x.await(t, "got two\n")
		x.await(t, "err two\n")
		if strings.Contains(x.String(), "early") {
			t.Errorf("what was said before: %q", x.String())
		}
	}
	// A client that detaches kills nothing, and the end of its stdin is not that of the
	// container's.
	a.stdin.Close()
	a.cancel()
	if err := <-a.done; !errors.Is(err, context.Canceled) {
		t.Errorf("detached: %v", err)
	}
	io.WriteString(b.stdin, "three\n")
	c.await(t, "got three\n")
	io.WriteString(b.stdin, "end\n")
	for _, x := range []*attachment{b, c} {
		if err := <-x.done; err != nil || x.code != 7 {
			t.Errorf("end of the container: %d %v", x.code, err)
		}
	}
	if strings.Contains(a.String(), "three") {
		t.Errorf("heard after it was detached: %q", a.String())
	}
	n.wait(j)
	if _, err := n.Attach(t.Context(), j.Id, keeper.Streams{}); !errors.Is(err, fault.Precondition) {
		t.Errorf("an exited one: %v", err)
	}
}

// A client that writes as soon as it has a stdin receives the answer.
func TestWhoAttachesHearsTheFirstAnswer(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), `while read x; do echo got $x; done`, func(j *job) { j.Stdin = true })
	for i := range 300 {
		a := n.attach(j, true)
		fmt.Fprintln(a.stdin, i)
		a.await(t, fmt.Sprintf("got %d\n", i))
		if t.Failed() {
			break
		}
		a.cancel()
		<-a.done
	}
}

func TestStdinOnce(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), `echo early; cat; echo eof; sleep 1; exit 5`,
		func(j *job) { j.Stdin, j.StdinOnce = true, true })
	n.waitOutput(j, "early")
	a := n.attach(j, true)
	a.await(t, "early\n") // kept for the first client
	io.WriteString(a.stdin, "hello\n")
	a.await(t, "hello\n")
	b := n.attach(j, true)
	if err := <-b.done; !errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "stdin_once") {
		t.Errorf("a second: %v", err)
	}
	a.stdin.Close()
	a.await(t, "eof\n")
	if err := <-a.done; err != nil || a.code != 5 {
		t.Errorf("%d %v", a.code, err)
	}
	// The stdin also ends if the first client disconnects without closing it.
	j = n.run(n.sandbox(), `cat; echo eof`, func(j *job) { j.Stdin, j.StdinOnce = true, true })
	a = n.attach(j, true)
	io.WriteString(a.stdin, "hello\n")
	a.await(t, "hello\n")
	a.cancel()
	if exit := n.wait(j).Exit; exit.Code != 0 || !strings.HasSuffix(n.output(j), "eof\n") {
		t.Errorf("%v %q", exit, n.output(j))
	}
}

func TestAttachToATerminal(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), `echo ready; while read x; do echo got $x; stty size; done`, func(j *job) {
		j.Stdin, j.Tty, j.spec.Process.Terminal = true, true, true
	})
	n.waitOutput(j, "ready")
	a := n.attach(j, true)
	a.sizes <- keeper.Size{Width: 99, Height: 33}
	a.sizes <- keeper.Size{Width: 91, Height: 31}
	if !eventually(func() bool { io.WriteString(a.stdin, "x\n"); return strings.Contains(a.String(), "31 91") }) {
		t.Errorf("%q", a.String())
	}
	a.cancel()
	<-a.done
	// The terminal has not hung up.
	if s := n.attach(j, true); !eventually(func() bool { io.WriteString(s.stdin, "y\n"); return strings.Contains(s.String(), "got y") }) {
		t.Errorf("%q", s.String())
	}
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, false))
	n.wait(j)
}

// Clients attach while containers with a terminal exit: each of them gets the exit code, or is told that
// the container does not run.
func TestAttachToContainersThatExit(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	for range 10 {
		j := n.run(box, "exit 5", func(j *job) { j.Stdin, j.Tty, j.spec.Process.Terminal = true, true, true })
		var clients sync.WaitGroup
		for range 4 {
			clients.Go(func() {
				for {
					code, err := n.Attach(t.Context(), j.Id, keeper.Streams{Stdout: io.Discard})
					if err == nil && code == 5 {
						continue
					}
					if !errors.Is(err, fault.Precondition) {
						t.Errorf("code %d, %v", code, err)
					}
					return
				}
			})
		}
		clients.Wait()
	}
}

// A client that reads nothing is detached; the container, its log and other clients continue.
func TestADeadListenerIsDetached(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), `while read x && test $x != go; do echo pong; done; i=0; while test $i -lt 20000; do echo line $i; i=$((i+1)); done; exit 4`, func(j *job) { j.Stdin = true })
	live := n.attach(j, true)
	never, w := io.Pipe()
	dead := make(chan error, 1)
	go func() {
		_, err := n.Attach(t.Context(), j.Id, keeper.Streams{Stdout: w})
		dead <- err
	}()
	heard := make(chan struct{})
	go func() {
		never.Read(make([]byte, 1))
		close(heard)
	}()
	live.pingUntil(heard)
	start := time.Now()
	io.WriteString(live.stdin, "go\n")
	if err := <-live.done; err != nil || live.code != 4 || strings.Count(live.String(), "line") != 20000 {
		t.Errorf("the other: %d %v, %d lines", live.code, err, strings.Count(live.String(), "line"))
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
	never.Close()
	if err := <-dead; !errors.Is(err, fault.Exhausted) && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the dead one: %v", err)
	}
	if lines := strings.Count(n.output(j), "line"); lines != 20000 {
		t.Errorf("%d lines in the log", lines)
	}
}

// A client that reads more slowly than the container writes delays it for a moment, and is then
// detached. The container writes no faster than another client reads on a busy machine.
func TestASlowListenerIsDetached(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), `while read x && test $x != go; do echo pong; done; for i in $(seq 40); do dd if=/dev/zero bs=64k count=4 2>/dev/null; sleep 0.05; done; exit 4`, func(j *job) { j.Stdin = true })
	live := n.attach(j, true)
	read, write := io.Pipe()
	slow := make(chan error, 1)
	go func() {
		_, err := n.Attach(t.Context(), j.Id, keeper.Streams{Stdout: write})
		slow <- err
	}()
	heard := make(chan struct{})
	go func() {
		read.Read(make([]byte, 1))
		close(heard)
		for buf := make([]byte, 4096); ; time.Sleep(50 * time.Millisecond) { // 80 KiB per second: 10 MiB would take minutes
			if _, err := read.Read(buf); err != nil {
				return
			}
		}
	}()
	live.pingUntil(heard)
	start := time.Now()
	io.WriteString(live.stdin, "go\n")
	if err := <-live.done; err != nil || live.code != 4 {
		t.Errorf("the other: %d %v", live.code, err)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
	read.Close()
	if err := <-slow; !errors.Is(err, fault.Exhausted) && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the slow one: %v", err)
	}
}

func TestExecsLeaveNoDescriptors(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	n.exec(j, "true") // the fork server's socket stays
	before := n.descriptors()
	for range 20 {
		if code, _, _ := n.exec(j, "true"); code != 0 {
			t.Fatal(code)
		}
		if code, _ := n.execOnTerminal(j, "true"); code != 0 {
			t.Fatal(code)
		}
		// after the terminal was created
		if _, err := n.Exec(t.Context(), j.Id, []string{"nonesuch"}, true, keeper.Streams{}); err == nil {
			t.Fatal("no error")
		}
	}
	if !eventually(func() bool { return n.descriptors() <= before }) {
		t.Errorf("%d descriptors, %d before", n.descriptors(), before)
	}
}
