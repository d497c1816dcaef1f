package vm

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// talk is an open stream whose other end answers each line.
type talk struct {
	keys *io.PipeWriter
	out  harness.Screen
	done chan error
}

func (k *talk) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(k.keys, text+"\n"); err != nil {
		t.Fatal(err)
	}
	k.out.Await(t, "got "+text+"\n")
}

// converse opens a stream as kubectl does, over SPDY or WebSocket.
func converse(t *testing.T, address string, over string) *talk {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	x, err := harness.Transports[over].Command(&rest.Config{Host: u.Host}, u)
	if err != nil {
		t.Fatal(err)
	}
	keyboard, keys := io.Pipe()
	k := &talk{keys: keys, done: make(chan error, 1)}
	go func() {
		k.done <- x.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: keyboard, Stdout: &k.out})
	}()
	t.Cleanup(func() { keys.Close() })
	return k
}

// forward forwards a port of a pod and returns the local address.
func forward(t *testing.T, d *harness.Daemon, pod string, port int32) string {
	t.Helper()
	resp, err := d.Runtime.PortForward(t.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{port}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		t.Fatal(err)
	}
	local, _ := harness.Transports["SPDY"].Forward(t, &rest.Config{Host: u.Host}, u, port)
	return local
}

// echo sends a text over a connection to harness.EchoIn and waits for the answer.
func echo(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(time.Minute))
	answer := make([]byte, len(text))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatalf("say %q: %v", text, err)
	}
	if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != text {
		t.Fatalf("%q is answered with %q, %v", text, answer, err)
	}
}

// Open streams continue when the unit is restarted, or stopped and started later. New streams
// belong to the new process.
func TestStreamsOutliveTheUnit(t *testing.T) {
	d := start(t)
	image := d.PullBusybox(t)
	for name, again := range map[string]func(between func()){
		"restart": func(func()) { systemctl(t, "restart", "kurid.service") },
		"stop and start": func(between func()) {
			systemctl(t, "stop", "kurid.service")
			between()
			systemctl(t, "start", "kurid.service")
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := harness.Pod("streams")
			pod := d.RunPod(t, p)
			const answering = "while read x; do echo got $x; done"
			config := harness.Container("main", image, "sh", "-c", answering)
			config.Stdin = true
			c := d.Run(t, pod, config, p)
			exec := func(over string) *talk {
				t.Helper()
				resp, err := d.Runtime.Exec(t.Context(), &runtimeapi.ExecRequest{
					ContainerId: c, Cmd: []string{"sh", "-c", answering + "; exit 7"}, Stdin: true, Stdout: true,
				})
				if err != nil {
					t.Fatal(err)
				}
				return converse(t, resp.Url, over)
			}
			attached, err := d.Runtime.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: c, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			talks := map[string]*talk{"SPDY": exec("SPDY"), "WebSocket": exec("WebSocket"),
				"attach": converse(t, attached.Url, "SPDY")}
			local := forward(t, d, pod, harness.EchoIn(t, "/run/netns/kuri-"+pod, "127.0.0.1:0"))
			conn, err := net.Dial("tcp", local)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			all := func(when string) {
				t.Helper()
				for what, k := range talks {
					k.say(t, when+" "+what)
				}
				echo(t, conn, when)
			}

			// 1. All of them continue.
			all("before")
			process := property(t, "kurid.service", "MainPID")
			again(func() { all("without") })
			dial(t, d)
			if now := property(t, "kurid.service", "MainPID"); now == process || now == "0" {
				t.Errorf("the unit's process was %s, and is %s", process, now)
			}
			all("after")
			more, err := net.Dial("tcp", local)
			if err != nil {
				t.Fatal(err)
			}
			defer more.Close()
			echo(t, more, "a new connection within the old forwarding")

			// 2. The new process serves new streams.
			beside := exec("SPDY")
			beside.say(t, "beside")
			if streaming := harness.Processes(t, "/usr/local/bin/kurid streams"); len(streaming) != 2 {
				t.Errorf("the processes that stream are %q, want the old one and the new one", streaming)
			}

			// 3. Exits are reported, and the old process exits with the last of its streams.
			for what, k := range map[string]*talk{"SPDY": talks["SPDY"], "WebSocket": talks["WebSocket"], "beside": beside} {
				k.keys.Close()
				if err := <-k.done; err == nil || !strings.Contains(err.Error(), "7") {
					t.Errorf("the exit of %s: %v", what, err)
				}
			}
			d.StopContainer(t, c, 0)
			if err := <-talks["attach"].done; err != nil {
				t.Errorf("the end of the container: %v", err)
			}
			d.RemovePod(t, pod)
		})
		harness.Eventually(t, time.Minute, "the old process that streams ends", func() error {
			if streaming := harness.Processes(t, "/usr/local/bin/kurid streams"); len(streaming) > 1 {
				return fmt.Errorf("there are %q", streaming)
			}
			return nil
		})
	}
}
