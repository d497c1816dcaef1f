package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// talk is an open stream to a command that answers each line of input.
type talk struct {
	keys *io.PipeWriter
	out  *harness.Screen
	done chan error
}

func (k *talk) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(k.keys, text+"\n"); err != nil {
		t.Fatal(err)
	}
	k.out.Await(t, "got "+text)
}

func converse(t *testing.T, x remotecommand.Executor) *talk {
	t.Helper()
	keyboard, keys := io.Pipe()
	k := &talk{keys, &harness.Screen{}, make(chan error, 1)}
	go func() {
		k.done <- x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: keyboard, Stdout: k.out})
	}()
	t.Cleanup(func() { keys.Close() })
	return k
}

// Open streams continue when kurid is restarted or killed. The next kurid serves new ones at the
// same address.
func TestStreamsOutliveTheDaemon(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	for name, end := range map[string]func(*harness.Daemon, testing.TB){"TERM": (*harness.Daemon).Stop, "KILL": (*harness.Daemon).Kill9} {
		t.Run(name, func(t *testing.T) {
			s := newShell(t, harness.Options{Config: fmt.Sprintf("[stream]\nport = %d\n", port)})
			const answering = "while read x; do echo got $x; done"
			id := s.run(t, func(c *container, _ *security) { c.Stdin = true }, "sh", "-c", answering)
			exec := func() string {
				return s.execURL(t, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", answering + "; exit 7"},
					Stdin: true, Stdout: true})
			}
			attached, err := s.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			talks := map[string]*talk{
				"exec over SPDY":      converse(t, transports["SPDY"](t, exec())),
				"exec over WebSocket": converse(t, transports["WebSocket"](t, exec())),
				"attach":              converse(t, transports["SPDY"](t, attached.Url)),
			}
			local := s.forward(t, s.pod, harness.EchoIn(t, "/run/netns/kuri-"+s.pod, "127.0.0.1:0"))
			conn, err := net.Dial("tcp", local)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			echo := func(text string) {
				t.Helper()
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				answer := make([]byte, len(text))
				if _, err := io.WriteString(conn, text); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != text {
					t.Fatalf("%q %v", answer, err)
				}
			}
			for what, k := range talks {
				k.say(t, "before "+what)
			}
			echo("before")

			// 1. Without a daemon, and with the next one.
			end(s.Daemon, t)
			talks["attach"].say(t, "without")
			talks["exec over SPDY"].say(t, "without")
			echo("without")
			s.Continue(t)
			for what, k := range talks {
				k.say(t, "after "+what)
			}
			echo("after")
			if answer, err := ask(local, "a new connection"); err != nil || answer != "a new connection" {
				t.Errorf("a new connection within the old forwarding: %q %v", answer, err)
			}

			// 2. The next daemon serves streams and returns URLs at the same address.
			beside := converse(t, transports["SPDY"](t, exec()))
			beside.say(t, "beside")
			beside.keys.Close()
			if err := <-beside.done; err == nil || !strings.Contains(err.Error(), "7") {
				t.Errorf("the exit of the one beside: %v", err)
			}
			if _, _, code := s.Exec(t, id, "true"); code != 0 {
				t.Errorf("exit %d", code)
			}

			// 3. They also continue with the next keeper and with the next holder.
			killKeeper(t, s.Daemon, false)
			for what, k := range talks {
				if what != "attach" { // output of a container while no keeper runs is only in its log
					k.say(t, "keeper "+what)
				}
			}
			if err := syscall.Kill(s.HolderPid(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			for what, k := range talks {
				if what != "attach" {
					k.say(t, "holder "+what)
				}
			}
			becomes(t, "the attachment goes on", func() bool {
				io.WriteString(talks["attach"].keys, "keepers\n")
				return strings.Contains(talks["attach"].out.String(), "got keepers")
			})

			// 4. Exits are reported: a command's to its client, and the container's to the new daemon.
			for _, what := range []string{"exec over SPDY", "exec over WebSocket"} {
				talks[what].keys.Close()
				if err := <-talks[what].done; err == nil || !strings.Contains(err.Error(), "7") {
					t.Errorf("the exit of %s: %v", what, err)
				}
			}
			s.StopContainer(t, id, 0)
			if err := <-talks["attach"].done; err != nil {
				t.Errorf("the end of the container: %v", err)
			}
			if status := s.WaitExit(t, id); status.ExitCode != 137 {
				t.Errorf("exit %d", status.ExitCode)
			}
			// 5. Nothing is forwarded to a removed pod, although its port forwarding is still open.
			s.RemovePod(t, s.pod)
			if answer, err := ask(local, "x"); answer != "" {
				t.Errorf("%q %v", answer, err)
			}
		})
	}
}

// If the streaming process is killed, the commands of its streams are killed, and nothing else is affected.
func TestTheEndOfStreamsIsThatOfTheirCommands(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		k := converse(t, transports["SPDY"](t, s.execURL(t, &runtimeapi.ExecRequest{
			ContainerId: id, Cmd: []string{"sh", "-c", "echo go; setsid sleep 61234 & sleep 61235"}, Stdin: true, Stdout: true,
		})))
		k.out.Await(t, "go")
		if err := syscall.Kill(streaming(t), sig); err != nil {
			t.Fatal(err)
		}
		<-k.done
		harness.Eventually(t, 10*time.Second, "an end of the commands", func() error {
			if left := append(harness.Processes(t, "sleep 61234"), harness.Processes(t, "sleep 61235")...); len(left) > 0 {
				return fmt.Errorf("there is %v", left)
			}
			return nil
		})
		if _, _, code := s.Exec(t, id, "true"); code != 0 {
			t.Errorf("exit %d", code)
		}
	}
}

// streaming returns the pid of the streaming process.
func streaming(t *testing.T) int {
	t.Helper()
	all := harness.Processes(t, harness.Bin("kurid")+" streams")
	if len(all) != 1 {
		t.Fatalf("the processes that stream are %q", all)
	}
	pid, err := strconv.Atoi(strings.Fields(all[0])[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// Clients that read nothing, or send what nobody reads, cost bounded memory and only their own streams.
func TestSlowClientsCostTheirOwnStreams(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	var said bytes.Buffer
	quick := func() {
		t.Helper()
		said.Reset()
		address := s.execURL(t, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"echo", "quick"}, Stdout: true})
		if err := transports["SPDY"](t, address).StreamWithContext(t.Context(),
			remotecommand.StreamOptions{Stdout: &said}); err != nil || said.String() != "quick\n" {
			t.Fatalf("%q %v", said.String(), err)
		}
	}
	quick()
	pid := streaming(t)
	before := anonymous(t, pid)

	const clients = 10
	var wg sync.WaitGroup
	var cuts []func()
	for i := range clients {
		never, stuck := io.Pipe()
		address, cut := line(t, s.execURL(t, &runtimeapi.ExecRequest{
			ContainerId: id, Cmd: []string{"sh", "-c", "yes 0123456789abcdef; : 62345"}, Stdin: true, Stdout: true,
		}))
		cuts = append(cuts, cut, func() { never.Close() })
		x := transports[[]string{"SPDY", "WebSocket"}[i%2]](t, address)
		wg.Go(func() {
			x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: endless{}, Stdout: stuck})
		})
	}
	time.Sleep(3 * time.Second)
	grown := anonymous(t, pid) - before
	t.Logf("the process that streams has %d KiB of its own, and %d clients that are stuck cost %d KiB", before>>10,
		clients, grown>>10)
	if grown > clients*8<<20 {
		t.Errorf("%d clients that are stuck cost %d bytes", clients, grown)
	}
	quick()
	for _, cut := range cuts {
		cut()
	}
	wg.Wait()
	harness.Eventually(t, 15*time.Second, "an end of the commands", func() error {
		if left := harness.Processes(t, "yes 0123456789abcdef"); len(left) > 0 {
			return fmt.Errorf("there are %d", len(left))
		}
		return nil
	})
	quick()
}

// anonymous returns the anonymous memory of a process in bytes.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
