package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/keeper"
)

// backgroundExec is an exec that runs in the background of the test.
type backgroundExec struct {
	stdin  *io.PipeWriter
	cancel context.CancelCauseFunc
	done   chan struct{} // closed at its end; the fields below are set by then
	code   int32
	err    error

	mu  sync.Mutex // guards out
	out bytes.Buffer
}

func (x *backgroundExec) Write(b []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.out.Write(b)
}

func (x *backgroundExec) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.out.String()
}

func (n *node) beginExec(j *job, script string, tty, stdin bool) *backgroundExec {
	x := &backgroundExec{done: make(chan struct{})}
	var ctx context.Context
	ctx, x.cancel = context.WithCancelCause(n.t.Context())
	with := keeper.Streams{Stdout: x, Stderr: x}
	if stdin {
		with.Stdin, x.stdin = io.Pipe()
	}
	go func() {
		defer close(x.done)
		x.code, x.err = n.Exec(ctx, j.Id, []string{"/bin/sh", "-c", script}, tty, with)
	}()
	return x
}

func (x *backgroundExec) says(t *testing.T, want string) {
	t.Helper()
	if !eventually(func() bool { return strings.Contains(x.String(), want) }) {
		t.Fatalf("no %q in %q", want, x.String())
	}
}

// wantNoExecs asserts that nothing is kept of finished execs in a container.
func (n *node) wantNoExecs(j *job) {
	n.t.Helper()
	n.wantNoExecCgroups(j)
	var left []string
	if !eventually(func() bool {
		left, _ = filepath.Glob(n.state + "/keeper/execs/*")
		return len(left) == 0
	}) {
		n.t.Errorf("records of execs are left: %q", left)
	}
}

// Execs continue when the keeper or the holder is killed. Their exit codes are reported, also if
// they exit while there is no keeper.
func TestExecsOutliveTheKeeper(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	way := map[string]*job{"": n.run(box, "sleep 1000"), ", by libcontainer": n.run(box, "sleep 1000", byLibcontainer)}
	ends := func(t *testing.T, x *backgroundExec, code int32, out string) {
		t.Helper()
		select {
		case <-x.done:
		case <-time.After(20 * time.Second):
			t.Fatalf("the exec does not end; it said %q", x.String())
		}
		if x.err != nil || x.code != code || strings.ReplaceAll(x.String(), "\r", "") != out {
			t.Errorf("code %d, %v, output %q; want %d and %q", x.code, x.err, x.String(), code, out)
		}
	}
	for by, j := range way {
		release := fmt.Sprintf("/proc/%d/root/go", n.pids()[j.Id])
		held := func() *backgroundExec {
			os.Remove(release)
			x := n.beginExec(j, "echo one; while [ ! -e /go ]; do sleep 0.01; done; echo two; exit 5", false, false)
			x.says(t, "one\n")
			return x
		}
		t.Run("output"+by, func(t *testing.T) {
			x := held()
			n.killKeeper(false)
			n.killKeeper(false)
			n.must(os.WriteFile(release, nil, 0o644))
			ends(t, x, 5, "one\ntwo\n")
		})
		t.Run("ended while no keeper was there"+by, func(t *testing.T) {
			x := held()
			info, err := n.Info(t.Context())
			n.must(err)
			n.must(unix.Kill(int(info.Pid), syscall.SIGSTOP)) // it notices none of the exits
			n.must(os.WriteFile(release, nil, 0o644))
			x.says(t, "two\n")
			n.must(unix.Kill(int(info.Pid), syscall.SIGKILL))
			n.awaitKeeper(int(info.Pid))
			ends(t, x, 5, "one\ntwo\n")
		})
		t.Run("holder"+by, func(t *testing.T) {
			x := held()
			n.killHolder()
			n.must(os.WriteFile(release, nil, 0o644))
			ends(t, x, 5, "one\ntwo\n")
		})
		t.Run("input"+by, func(t *testing.T) {
			x := n.beginExec(j, "while read x; do echo got $x; done; echo end; exit 6", false, true)
			for _, word := range []string{"a", "b", "c"} {
				io.WriteString(x.stdin, word+"\n")
				x.says(t, "got "+word)
				n.killKeeper(false)
			}
			x.stdin.Close()
			ends(t, x, 6, "got a\ngot b\ngot c\nend\n")
		})
		t.Run("terminal"+by, func(t *testing.T) {
			x := n.beginExec(j, "stty -echo; echo ready; while read x; do echo got $x; [ $x = end ] && exit 7; done", true, true)
			x.says(t, "ready")
			n.killKeeper(false)
			io.WriteString(x.stdin, "a\n")
			x.says(t, "got a")
			n.killKeeper(false)
			io.WriteString(x.stdin, "end\n")
			ends(t, x, 7, "ready\ngot a\ngot end\n")
		})
		t.Run("cancelled after"+by, func(t *testing.T) {
			x := n.beginExec(j, "echo one; sleep 4711", false, false)
			x.says(t, "one\n")
			n.killKeeper(false)
			enough := errors.New("enough")
			x.cancel(enough)
			if <-x.done; !errors.Is(x.err, enough) {
				t.Errorf("%v", x.err)
			}
			n.wantNoProcess(j, "4711")
		})
		t.Run("cancelled between"+by, func(t *testing.T) {
			x := n.beginExec(j, "echo one; sleep 4712", false, false)
			x.says(t, "one\n")
			info, err := n.Info(t.Context())
			n.must(err)
			n.must(unix.Kill(int(info.Pid), syscall.SIGSTOP))
			x.cancel(errors.New("enough"))
			n.must(unix.Kill(int(info.Pid), syscall.SIGKILL))
			<-x.done
			n.wantNoProcess(j, "4712")
		})
		n.wantNoExecs(j)
	}
}

// Consecutive execs, like those of probes, do not fail when keepers are killed meanwhile, and each
// runs once.
func TestExecsUnderKills(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	stop := make(chan struct{})
	var probing sync.WaitGroup
	counts := make([]atomic.Int32, 3)
	for prober := range counts {
		probing.Go(func() {
			for ; ; counts[prober].Add(1) {
				select {
				case <-stop:
					return
				default:
				}
				var out bytes.Buffer
				script := fmt.Sprintf("echo %d-%d >>/ran; echo one; sleep 0.03; echo two; exit 3", prober, counts[prober].Load())
				code, err := n.Exec(t.Context(), j.Id, []string{"/bin/sh", "-c", script}, false, keeper.Streams{Stdout: &out})
				if err != nil || code != 3 || out.String() != "one\ntwo\n" {
					t.Errorf("code %d, %v, output %q", code, err, out.String())
					return
				}
			}
		})
	}
	for i := range 15 {
		if i%killsInARow == 0 {
			n.awaitRounds(counts)
		}
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		if i%5 == 4 {
			n.killHolder()
		} else {
			n.killKeeper(false)
		}
	}
	close(stop)
	probing.Wait()
	execs := int(counts[0].Load() + counts[1].Load() + counts[2].Load())
	t.Logf("%d execs", execs)
	ran := n.ran(j)
	slices.Sort(ran)
	if once := slices.Compact(slices.Clone(ran)); len(once) != len(ran) || len(ran) != execs {
		t.Errorf("%d execs ran %d times, %d of them once", execs, len(ran), len(once))
	}
	n.wantNoExecs(j)
}
