package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// kuriProcess is a kuri that runs while the test continues.
type kuriProcess struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	errs   bytes.Buffer
	closed bool
}

func startKuri(t *testing.T, d *harness.Daemon, args ...string) *kuriProcess {
	t.Helper()
	k := &kuriProcess{cmd: exec.Command(harness.Bin("kuri"), args...)}
	k.cmd.Env = append(os.Environ(), d.Env()...)
	k.cmd.Stderr = &k.errs
	out, err := k.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	k.out = bufio.NewReader(out)
	if err := k.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !k.closed {
			_ = k.cmd.Process.Kill()
			_ = k.cmd.Wait()
		}
	})
	return k
}

// line reads the next line of its output.
func (k *kuriProcess) line(t *testing.T) string {
	t.Helper()
	line, err := k.out.ReadString('\n')
	if err != nil {
		t.Fatalf("its output ends: %v: %s", err, k.errs.String())
	}
	return strings.TrimSpace(line)
}

// end waits for kuri to exit and returns the rest of its output and its exit code.
func (k *kuriProcess) end(t *testing.T) (rest string, code int) {
	t.Helper()
	timer := time.AfterFunc(30*time.Second, func() { _ = k.cmd.Process.Kill() })
	defer timer.Stop()
	body, _ := io.ReadAll(k.out)
	_ = k.cmd.Wait()
	k.closed = true
	return string(body), k.cmd.ProcessState.ExitCode()
}

// kuri logs --previous shows the attempt before the latest, even if attempt numbers have gaps or
// that attempt was in an earlier sandbox of the pod.
func TestKuriLogsPrevious(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.HostNetwork(harness.Pod("again"))
	config.LogDirectory = t.TempDir()
	pod := d.RunPod(t, config)
	run := func(pod string, attempt uint32, word string) string {
		c := harness.Container("c", image, "echo", word)
		c.Metadata.Attempt, c.LogPath = attempt, fmt.Sprintf("%d.log", attempt)
		id := d.Run(t, pod, c, config)
		d.WaitExit(t, id)
		return id
	}
	wants := func(want string, args ...string) {
		t.Helper()
		out, errs, code := d.Kuri(t, append([]string{"logs"}, args...)...)
		if out != want || code != 0 {
			t.Errorf("kuri logs %q: %q, exit code %d: %s", args, out, code, errs)
		}
	}
	run(pod, 0, "first")
	if out, _, code := d.Kuri(t, "logs", "--previous", "again"); code != 3 || out != "" {
		t.Errorf("without a previous one: %q, exit code %d", out, code)
	}
	second := run(pod, 1, "second")
	run(pod, 4, "third")
	wants("third\n", "again")
	wants("second\n", "--previous", "again")
	wants("second\n", "--previous", "again/c")
	if _, err := d.Runtime.RemoveContainer(t.Context(),
		&runtimeapi.RemoveContainerRequest{ContainerId: second}); err != nil {
		t.Fatal(err)
	}
	wants("first\n", "-p", "again")

	// The kubelet creates the sandbox again and continues the attempt numbers.
	if _, err := d.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	config.Metadata.Attempt = 1
	anew := d.RunPod(t, config)
	fourth := run(anew, 5, "fourth")
	wants("fourth\n", fourth[:12])
	wants("third\n", "--previous", fourth[:12])
}

// kuri logs -f of a pod prints every line of all its containers, each container's in order, while
// Kuri rotates the logs. After they have exited, kuri logs prints the same.
func TestKuriLogsThroughRotations(t *testing.T) {
	d := harness.Start(t, harness.Options{Config: "[pod]\nlog_max_size = 1048576\nlog_max_files = 20"})
	image := d.PullBusybox(t)
	config := harness.HostNetwork(harness.Pod("busy"))
	config.LogDirectory = t.TempDir()
	pod := d.RunPod(t, config)
	const lines, names = 40_000, "ab"
	var ids []string
	for _, name := range names {
		// Pauses of some tenths of a second, so that the command also waits for new output.
		c := harness.Container(string(name), image, "sh", "-c",
			fmt.Sprintf("sleep 0.5; for n in 0 1 2 3; do seq $((n*%[1]d+1)) $((n*%[1]d+%[1]d)) | sed 's/.*/line-number-&-and-some-more/'; sleep 0.3; done", lines/4))
		c.LogPath = string(name) + ".log"
		ids = append(ids, d.Run(t, pod, c, config))
	}
	check := func(what, out string, code int, errs string) {
		t.Helper()
		if code != 0 || errs != "" {
			t.Errorf("%s: exit code %d: %s", what, code, errs)
		}
		next := map[string]int{}
		for line := range strings.Lines(out) {
			var name string
			var n int
			if _, err := fmt.Sscanf(line, "[%1s] line-number-%d-and-some-more\n", &name, &n); err != nil {
				t.Fatalf("%s: line %q: %v", what, line, err)
			}
			if next[name]++; next[name] != n {
				t.Fatalf("%s: of %s line %d comes after %d", what, name, n, next[name]-1)
			}
		}
		for _, name := range names {
			if next[string(name)] != lines {
				t.Errorf("%s: %d lines of %c, want %d", what, next[string(name)], name, lines)
			}
		}
	}
	follow := startKuri(t, d, "logs", "-f", "busy")
	out, code := follow.end(t)
	check("followed", out, code, follow.errs.String())
	for _, id := range ids {
		if d.WaitExit(t, id); !rotatedLog(t, d.ContainerStatus(t, id).LogPath) {
			t.Error("its log was never rotated")
		}
	}
	out, errs, code := d.Kuri(t, "logs", "busy")
	check("read", out, code, errs)
	out, errs, code = d.Kuri(t, "logs", "--tail", "35000", "busy/a") // starts in a rotated file
	if first, _, _ := strings.Cut(out, "\n"); code != 0 || first != "line-number-5001-and-some-more" ||
		strings.Count(out, "\n") != 35000 {
		t.Errorf("--tail: %q and %d lines, exit code %d: %s", first, strings.Count(out, "\n"), code, errs)
	}
}

func rotatedLog(t *testing.T, path string) bool {
	t.Helper()
	_, name, _ := strings.Cut(path, "/")
	entries, err := os.ReadDir("/" + name[:strings.LastIndex(name, "/")])
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), path[strings.LastIndex(path, "/")+1:]+".") {
			count++
		}
	}
	return count > 0
}

// kuri port-forward listens on a free port on both loopback addresses and serves many connections
// at once. It reports in one line which connections the pod refuses, serves the next, and exits
// with the pod or on a signal.
func TestKuriPortForward(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	pod := d.RunPod(t, harness.HostNetwork(harness.Pod("served"))) // so that its ports are the test's
	l, err := net.Listen("tcp", "127.0.0.1:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go harness.Echo(l)
	forwarding := regexp.MustCompile(`^Forwarding from (\S+) -> (\d+)$`)
	begin := func(ports ...string) (k *kuriProcess, at []string) {
		t.Helper()
		k = startKuri(t, d, append([]string{"port-forward", "served"}, ports...)...)
		for range 2 * len(ports) {
			m := forwarding.FindStringSubmatch(k.line(t))
			if m == nil {
				t.Fatal("it says something else")
			}
			at = append(at, m[1])
		}
		return k, at
	}

	k, at := begin("0:9000")
	if !strings.HasPrefix(at[0], "127.0.0.1:") || !strings.HasPrefix(at[1], "[::1]:") {
		t.Errorf("it listens at %q", at)
	}
	body := bytes.Repeat([]byte("chestnuts "), 20_000)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			conn, err := net.DialTimeout("tcp", at[i%2], 5*time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			go func() {
				_, _ = conn.Write(body)
				_ = conn.(*net.TCPConn).CloseWrite()
			}()
			if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, body) {
				t.Errorf("connection %d: %d bytes came back, %v", i, len(got), err)
			}
		})
	}
	wg.Wait()
	_ = k.cmd.Process.Signal(syscall.SIGINT)
	if _, code := k.end(t); code != 130 {
		t.Errorf("interrupted: exit code %d: %s", code, k.errs.String())
	}

	// Two ports, of which one has no listener. Each refused connection is reported, and the other
	// port is still served.
	k, at = begin("0:9000", ":9001")
	for range 2 {
		conn, err := net.Dial("tcp", at[2])
		if err != nil && !errors.Is(err, syscall.ECONNRESET) { // refused before connect(2) returned
			t.Fatal(err)
		}
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if got, err := io.ReadAll(conn); len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("nobody's port answers %q, %v", got, err)
			}
			conn.Close()
		}
		if conn, err = net.Dial("tcp", at[0]); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := conn.Write([]byte("still here\n")); err != nil {
			t.Error(err)
		}
		if line, err := bufio.NewReader(conn).ReadString('\n'); line != "still here\n" {
			t.Errorf("after a refused connection: %q %v", line, err)
		}
		conn.Close()
	}
	d.RemovePod(t, pod)
	_, code := k.end(t)
	says := k.errs.String()
	if code != 3 || strings.Count(says, "kuri: port 9001: nothing listens on port 9001") != 2 ||
		strings.Count(says, "\n") != 3 || !strings.Contains(says, "the pod served is gone") {
		t.Errorf("two refused connections and the pod's end: exit code %d: %s", code, says)
	}
	if _, errs, code := d.Kuri(t, "port-forward", "served", "99999"); code != 2 {
		t.Errorf("a port that is none: exit code %d: %s", code, errs)
	}
	if _, _, code := d.Kuri(t, "port-forward", "nobody", "80"); code != 3 {
		t.Errorf("a pod that is none: exit code %d", code)
	}
}

// kuri attach: several clients follow one container, a client that leaves does not end it, and all
// exit with it; also on a terminal.
func TestKuriAttach(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.HostNetwork(harness.Pod("talk"))
	pod := d.RunPod(t, config)
	id := d.Run(t, pod, harness.Container("c", image, "sh", "-c",
		"trap 'echo bye; exit 42' TERM; i=0; while :; do echo tick $((i=i+1)); echo tock >&2; sleep 0.1; done"), config)

	stays, leaves := startKuri(t, d, "attach", "talk"), startKuri(t, d, "attach", "talk/c")
	for _, k := range []*kuriProcess{stays, leaves} {
		if got := k.line(t); !strings.HasPrefix(got, "tick ") {
			t.Errorf("it says %q", got)
		}
	}
	_ = leaves.cmd.Process.Signal(syscall.SIGTERM)
	if _, code := leaves.end(t); code != 143 {
		t.Errorf("detached: exit code %d: %s", code, leaves.errs.String())
	}
	if st := d.ContainerStatus(t, id).State; st != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", st)
	}
	stays.line(t)
	d.StopContainer(t, id, 10)
	rest, code := stays.end(t)
	if code != 42 || !strings.HasSuffix(rest, "bye\n") || strings.Contains(rest, "tock") ||
		!strings.Contains(stays.errs.String(), "tock\n") {
		t.Errorf("its end: exit code %d, …%q; %q", code, rest[max(0, len(rest)-20):],
			stays.errs.String()[:min(40, stays.errs.Len())])
	}

	// The exit code shows how the container ended; following its log does not change it.
	killed := d.Run(t, pod, harness.Container("killed", image, "sh", "-c", "while :; do echo tick; sleep 0.1; done"),
		config)
	attached, follows := startKuri(t, d, "attach", "talk/killed"), startKuri(t, d, "logs", "-f", "talk/killed")
	attached.line(t)
	follows.line(t)
	d.StopContainer(t, killed, 0)
	if _, code := attached.end(t); code != 137 {
		t.Errorf("attached to one that was killed: exit code %d: %s", code, attached.errs.String())
	}
	if _, code := follows.end(t); code != 0 {
		t.Errorf("following the log of one that was killed: exit code %d: %s", code, follows.errs.String())
	}

	terminal := harness.Container("tty", image, "sh", "-c", "stty -echo; echo ready; read word; echo got $word; exit 3")
	terminal.Tty, terminal.Stdin = true, true
	d.Run(t, pod, terminal, config)
	k := &kuriProcess{cmd: exec.Command(harness.Bin("kuri"), "attach", "-it", "talk/tty")}
	k.cmd.Env = append(os.Environ(), d.Env()...)
	in, out := new(bytes.Buffer), new(bytes.Buffer)
	in.WriteString("chestnut\n")
	k.cmd.Stdin, k.cmd.Stdout, k.cmd.Stderr = in, out, &k.errs
	timer := time.AfterFunc(20*time.Second, func() { _ = k.cmd.Process.Kill() })
	defer timer.Stop()
	if err := k.cmd.Run(); k.cmd.ProcessState.ExitCode() != 3 || !strings.HasSuffix(out.String(), "got chestnut\r\n") {
		t.Errorf("at a terminal: %v, %q: %s", err, out, k.errs.String())
	}
	if _, errs, code := d.Kuri(t, "attach", "talk/tty"); code == 0 || !strings.Contains(errs, "tty") {
		t.Errorf("to one that has ended: exit code %d: %s", code, errs)
	}
}

// The detach keys leave a terminal: the container of kuri attach and that of kuri exec keep running.
func TestKuriDetaches(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.HostNetwork(harness.Pod("talk"))
	pod := d.RunPod(t, config)
	shell := harness.Container("tty", image, "sh")
	shell.Tty, shell.Stdin = true, true
	id := d.Run(t, pod, shell, config)

	x := onTerminal(t, d, "attach", "-it", "talk")
	x.expect("kuri: ctrl-p,ctrl-q leaves talk running")
	x.press("echo one$((1+1))\r")
	x.expect("one2")
	x.press("\x10")
	time.Sleep(100 * time.Millisecond)
	x.press("\x11")
	x.expect("detached; talk keeps running")
	if code := x.exit(); code != 0 || !x.cooked() {
		t.Errorf("exit code %d, the terminal is as before: %t", code, x.cooked())
	}
	y := onTerminal(t, d, "attach", "-it", "--detach-keys", "ctrl-],q", "talk")
	y.expect("leaves talk")
	y.press("\x10\x11echo two$((1+1))\r") // the detach keys are ordinary input for the shell here
	y.expect("two2")
	y.press("\x1dq")
	if code := y.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	z := onTerminal(t, d, "exec", "-it", "talk", "sh")
	z.press("echo three$((1+1))\r")
	z.expect("three2")
	z.press("\x10\x11")
	z.expect("detached; sh was hung up, talk keeps running")
	if code := z.exit(); code != 0 || !z.cooked() {
		t.Errorf("exit code %d, the terminal is as before: %t", code, z.cooked())
	}
	if st := d.ContainerStatus(t, id).State; st != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v", st)
	}
}

// kuri run -it shows the container's terminal from the first byte and leaves it by the detach keys.
// Without --rm the pod stays. The exit code is the container's.
func TestKuriRunOnATerminal(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.Registry.Push(t, "busybox:1", harness.Busybox(t))
	d.PullBusybox(t)
	dir := "--pods-dir=" + t.TempDir()
	prompt := []string{"-e", "PS1=ready> ", image, "sh"}

	x := onTerminal(t, d, append([]string{"run", dir, "-it", "--rm"}, prompt...)...)
	x.expect("ready> ") // the first output
	x.press("echo one$((1+1)) $(stty size)\r")
	x.expect("one2 24 80")
	x.press("exit 7\r")
	if code := x.exit(); code != 7 || !x.cooked() {
		t.Errorf("exit code %d, the terminal is as before: %t", code, x.cooked())
	}
	if out, _, _ := d.Kuri(t, "pods", "-q"); out != "" {
		t.Errorf("after --rm there are pods: %s", out)
	}

	y := onTerminal(t, d, append([]string{"run", dir, "-it", "--name", "stays"}, prompt...)...)
	y.expect("leaves stays running")
	y.expect("ready> ")
	y.press("\x10\x11")
	y.expect("detached; stays keeps running")
	if code := y.exit(); code != 0 || !y.cooked() {
		t.Errorf("detached: exit code %d, the terminal is as before: %t", code, y.cooked())
	}
	z := onTerminal(t, d, "attach", "-it", "stays")
	z.press("echo two$((1+1)); exit\r")
	z.expect("two2")
	z.exit()
	if out, _, _ := d.Kuri(t, "ps", "-a"); !strings.Contains(out, "exited (0)") {
		t.Errorf("its container: %s", out)
	}
	if _, errs, code := d.Kuri(t, "rm", dir, "stays", "-f"); code != 0 {
		t.Error(code, errs)
	}
	w := onTerminal(t, d, "run", dir, "-it", "--rm", image, "echo", "quick")
	w.expect("quick")
	if code := w.exit(); code != 0 {
		t.Errorf("a command that ends at once: exit code %d", code)
	}
}

// Ctrl-C ends any command that waits for input at a terminal, and the terminal's settings are restored.
func TestKuriInterruptedAtAQuestion(t *testing.T) {
	d := harness.Start(t, harness.Options{NoPods: true})
	d.PullBusybox(t)
	for expect, args := range map[string][]string{
		"[y/N] ":             {"prune"},
		"up to Ctrl-D":       {"run", "-"},
		"user name for ":     {"login", "localhost:1"},
		"password for me at": {"login", "-u", "me", "localhost:1"},
	} {
		x := onTerminal(t, d, args...)
		x.expect(expect)
		time.Sleep(100 * time.Millisecond) // until it reads
		x.press("\x03")
		if code := x.exit(); code != 128+2 || !x.cooked() {
			t.Errorf("kuri %q: exit code %d, the terminal is as before: %t", args, code, x.cooked())
		}
	}
}
