package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/test/harness"
)

// poller calls a daemon as a kubelet does, over persistent connections, until its test ends.
type poller struct {
	calls  atomic.Int64
	mu     sync.Mutex // guards failed
	failed []error

	ctx  context.Context // of the calls
	stop context.CancelFunc
	done sync.WaitGroup
}

func poll(t *testing.T, d *harness.Daemon, pod, container string) *poller {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	p := &poller{ctx: ctx, stop: stop}
	rt, err := client.DialRuntime(ctx, "unix://"+d.Socket, client.Options{Timeout: harness.Patient(20 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	images, err := client.DialImages(ctx, "unix://"+d.ImageSocket,
		client.Options{Timeout: harness.Patient(20 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close(); images.Close() })
	verbs := map[string]func() error{
		"Version":  func() error { _, err := rt.Version(ctx, &runtimeapi.VersionRequest{}); return err },
		"Status":   func() error { _, err := rt.Status(ctx, &runtimeapi.StatusRequest{}); return err },
		"ListPods": func() error { _, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); return err },
		"PodStatus": func() error {
			_, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
			return err
		},
		"ListContainers": func() error { _, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); return err },
		"ContainerStatus": func() error {
			_, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container})
			return err
		},
		"ExecSync": func() error {
			r, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}, Timeout: 10})
			if err == nil && r.ExitCode != 0 {
				err = fmt.Errorf("exit code %d", r.ExitCode)
			}
			return err
		},
		"ListImages": func() error { _, err := images.ListImages(ctx, &runtimeapi.ListImagesRequest{}); return err },
	}
	for name, verb := range verbs {
		p.done.Go(func() {
			for every := time.Tick(50 * time.Millisecond); ctx.Err() == nil; <-every {
				if err := verb(); ctx.Err() == nil {
					p.calls.Add(1)
					if err != nil {
						p.mu.Lock()
						p.failed = append(p.failed, fmt.Errorf("%s: %w", name, err))
						p.mu.Unlock()
					}
				}
			}
		})
	}
	return p
}

func (p *poller) end() (calls int64, failed []error) {
	p.stop()
	p.done.Wait()
	return p.calls.Load(), p.failed
}

func runningContainer(t *testing.T, d *harness.Daemon) (pod, container string) {
	t.Helper()
	image := d.PullBusybox(t)
	config := harness.Pod("restarts")
	pod = d.RunPod(t, config)
	return pod, d.Run(t, pod, harness.Container("main", image, "sleep", "100000"), config)
}

// restarts calls restart repeatedly for some seconds, or all times if KURI_TEST_RESTARTS=all.
// Between restarts the daemon is polled.
func restarts(t *testing.T, all int, restart func()) {
	t.Helper()
	limit := time.Now().Add(harness.Patient(7 * time.Second))
	for n := range all {
		if n >= 3 && time.Now().After(limit) && os.Getenv("KURI_TEST_RESTARTS") != "all" {
			t.Logf("%d restarts", n)
			return
		}
		restart()
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("%d restarts", all)
}

// churn creates and removes pods until its test ends. It makes each call once. With again it
// repeats calls that a killed daemon cut off.
func (p *poller) churn(ctx context.Context, t *testing.T, d *harness.Daemon, again bool) {
	t.Helper()
	rt, err := client.DialRuntime(ctx, "unix://"+d.Socket, client.Options{Timeout: harness.Patient(20 * time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close() })
	call := func(verb string, fn func(context.Context) error) bool {
		for {
			err := fn(t.Context()) // also after the polling has ended, so that the pod is removed
			p.calls.Add(1)
			if again && status.Code(err) == codes.Unavailable {
				continue
			}
			if err != nil {
				p.mu.Lock()
				p.failed = append(p.failed, fmt.Errorf("%s: %w", verb, err))
				p.mu.Unlock()
			}
			return err == nil
		}
	}
	p.done.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			config := harness.Pod(fmt.Sprintf("churn-%d", n))
			var id string
			if !call("RunPodSandbox", func(ctx context.Context) error {
				r, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
				id = r.GetPodSandboxId()
				return err
			}) {
				return
			}
			call("ListPodSandbox", func(ctx context.Context) error { // a retry must have joined: there is one pod
				r, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
				count := 0
				for _, item := range r.GetItems() {
					if item.Metadata.Name == config.Metadata.Name {
						count++
					}
				}
				if err == nil && count != 1 {
					err = fmt.Errorf("there are %d of pod %s", count, config.Metadata.Name)
				}
				return err
			})
			call("StopPodSandbox", func(ctx context.Context) error {
				_, err := rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
				return err
			})
			call("RemovePodSandbox", func(ctx context.Context) error {
				_, err := rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
				return err
			})
		}
	})
}

// A daemon that is restarted in order fails no call of a client that polls it and creates pods:
// calls in progress are answered, and new calls wait.
func TestRestartFailsNoCall(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	pod, container := runningContainer(t, d)
	p := poll(t, d, pod, container)
	p.churn(p.ctx, t, d, false)
	restarts(t, 60, func() { d.Restart(t) })
	calls, failed := p.end()
	t.Logf("%d calls", calls)
	if calls < 100 || len(failed) > 0 {
		t.Errorf("of %d calls %d failed: %v", calls, len(failed), errors.Join(failed...))
	}
}

// A daemon that is killed cuts the calls in progress but refuses no connection: every failure is a
// broken connection, and a client that retries gets the result of the first attempt.
func TestKillRefusesNoConnection(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	pod, container := runningContainer(t, d)
	p := poll(t, d, pod, container)
	p.churn(p.ctx, t, d, true)
	restarts(t, 40, func() {
		d.Kill9(t)
		for range 5 { // no daemon runs, and no connection is refused
			c, err := net.Dial("unix", d.Socket)
			if err != nil {
				t.Fatalf("dial while no daemon runs: %v", err)
			}
			c.Close()
		}
		d.Continue(t)
	})
	calls, failed := p.end()
	t.Logf("%d calls, %d were cut", calls, len(failed))
	if calls < 100 {
		t.Errorf("%d calls in all", calls)
	}
	for _, err := range failed {
		if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "refused") ||
			strings.Contains(err.Error(), "no such file") {
			t.Error(err)
		}
	}
}

// Long operations continue when the daemon is asked to exit, without delaying the next one: commands run to
// their end, a pull and a stop are continued by the next daemon, and each caller gets its response.
func TestRestartAnswersWhatIsInFlight(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	pod, container := runningContainer(t, d)
	image := d.PullBusybox(t)
	config := harness.Pod("restarts")
	stubborn := d.Run(t, pod, harness.Container("stubborn", image, "sh", "-c",
		"trap '' TERM; touch /tmp/began; while [ ! -e /tmp/go ]; do sleep 0.05; done"), config)
	begun(t, d, stubborn)

	// 1. A command, a pull of a layer that does not arrive, and a stop with a grace period of a minute.
	gate := make(chan struct{})
	var blobs atomic.Int64
	d.Registry.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/slow/blobs/") {
			blobs.Add(1)
			select {
			case <-gate:
			case <-r.Context().Done():
			}
		}
		next.ServeHTTP(w, r)
	})
	slow := d.Registry.Push(t, "slow:1", harness.Web(t))
	old, err := client.DialRuntime(t.Context(), "unix://"+d.Socket, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	oldImages, err := client.DialImages(t.Context(), "unix://"+d.ImageSocket, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer oldImages.Close()
	executed, pulled, stopped := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() {
		r, err := old.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container, Timeout: 60,
			Cmd: []string{"sh", "-c", "touch /tmp/began; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo done"}})
		if err == nil && string(r.Stdout) != "done\n" {
			err = fmt.Errorf("it said %q", r.Stdout)
		}
		executed <- err
	}()
	pull := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: slow}}
	var ref string
	go func() {
		r, err := oldImages.PullImage(t.Context(), pull)
		ref = r.GetImageRef()
		pulled <- err
	}()
	go func() {
		_, err := old.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: stubborn, Timeout: 60})
		stopped <- err
	}()
	begun(t, d, container)
	inFlight := func(least int64) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, "the layer is asked for", func() error {
			if n := blobs.Load(); n < least {
				return fmt.Errorf("%d requests for blobs", n)
			}
			return nil
		})
	}
	inFlight(1)

	// 2. The next daemon serves while the first still has to answer all three.
	before := blobs.Load()
	ended := d.Replace(t)
	if _, err := d.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Error(err)
	}
	for what, c := range map[string]chan error{"command": executed, "pull": pulled, "stop": stopped} {
		select {
		case err := <-c:
			t.Errorf("the %s was answered too early: %v", what, err)
		default:
		}
	}

	// 3. The next daemon continues the pull, and a request for the same image joins it.
	inFlight(before + 1)
	joined := make(chan error, 1)
	go func() {
		r, err := d.Images.PullImage(t.Context(), pull)
		if err == nil && imageStatus(t, d, slow).GetId() != r.ImageRef {
			err = fmt.Errorf("it answered %q", r.ImageRef)
		}
		joined <- err
	}()
	close(gate)
	for what, c := range map[string]chan error{"pull": pulled, "retry of the pull": joined} {
		if err := <-c; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := imageStatus(t, d, slow); got.GetId() != ref || ref == "" {
		t.Errorf("the pull answered %q, there is %v", ref, got)
	}

	// 4. The other callers get their responses, too.
	for _, c := range []string{container, stubborn} {
		if _, err := d.Runtime.ExecSync(t.Context(),
			&runtimeapi.ExecSyncRequest{ContainerId: c, Cmd: []string{"touch", "/tmp/go"}, Timeout: 30}); err != nil {
			t.Error(err)
		}
	}
	for what, c := range map[string]chan error{"command": executed, "stop": stopped} {
		if err := <-c; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := ended(); err != nil {
		t.Errorf("the first daemon: %v", err)
	}
	if st := d.ContainerStatus(t, stubborn); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 0 {
		t.Errorf("the container that was stopped: %v", st)
	}
}

// Under systemd the daemon makes a process that exits at once the main process of its unit. systemd
// then starts the next daemon, while the first continues the operations in progress. (test/vm has
// the story with systemd.)
func TestMainProcessEndsBeforeWhatIsInFlight(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	notified, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notified.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	main := make(chan int, 1)
	barriers := make(chan error, 1)
	go func() {
		pid := 0
		text, oob := make([]byte, 4096), make([]byte, 64)
		for {
			n, oobn, _, _, err := notified.ReadMsgUnix(text, oob)
			if err != nil {
				return
			}
			if _, err := fmt.Sscanf(string(text[:n]), "MAINPID=%d", &pid); err == nil {
				main <- pid
			}
			if messages, err := syscall.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) > 0 { // a barrier
				fds, _ := syscall.ParseUnixRights(&messages[0])
				// The new main process does not exit before the notification about it has been read.
				stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
				if err == nil && strings.Contains(string(stat), ") Z ") {
					err = errors.New(string(stat))
				}
				barriers <- err
				for _, fd := range fds {
					syscall.Close(fd)
				}
			}
		}
	}()
	d := harness.Start(t, harness.Options{})
	_, container := runningContainer(t, d)
	old, err := client.DialRuntime(t.Context(), "unix://"+d.Socket, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	executed := make(chan error, 1)
	go func() {
		_, err := old.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container, Timeout: 60,
			Cmd: []string{"sh", "-c", "touch /tmp/began; while [ ! -e /tmp/go ]; do sleep 0.05; done"}})
		executed <- err
	}()
	begun(t, d, container)
	ended := d.Replace(t)
	pid := <-main
	if err := <-barriers; err != nil {
		t.Errorf("the main process that was told ended too early: %v", err)
	}
	var status syscall.WaitStatus
	// The process is a child of kurid's parent.
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status.ExitStatus() != 0 {
		t.Errorf("the main process that was told, %d: %v, %v", pid, status, err)
	}
	if _, err := d.Runtime.ExecSync(t.Context(),
		&runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"touch", "/tmp/go"}, Timeout: 30}); err != nil {
		t.Error(err)
	}
	if err := <-executed; err != nil {
		t.Error(err)
	}
	if err := ended(); err != nil {
		t.Errorf("the first daemon: %v", err)
	}
}

// kurid hand-over returns when another kurid may start, while the kurid that it asked continues a
// command. It has no effect on a process that is not a kurid.
func TestHandOver(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	_, container := runningContainer(t, d)
	old, err := client.DialRuntime(t.Context(), "unix://"+d.Socket, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	executed := make(chan error, 1)
	go func() {
		_, err := old.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container, Timeout: 300,
			Cmd: []string{"sh", "-c", "touch /tmp/began; while [ ! -e /tmp/go ]; do sleep 0.05; done"}})
		executed <- err
	}()
	begun(t, d, container)
	first := d.Pid()
	ended := d.HandOver(t)
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", first)); err != nil || string(name) != "kurid-leaves\n" {
		t.Errorf("the first daemon is called %q: %v", name, err)
	}
	select {
	case err := <-executed:
		t.Errorf("the command was answered too early: %v", err)
	default:
	}
	// The first has handed over already: a second TERM would cut the command off.
	if said, code := harness.RunKurid(t, "hand-over", strconv.Itoa(first)); code != 0 {
		t.Errorf("asked once more: exit code %d: %s", code, said)
	}
	if _, err := d.Runtime.ExecSync(t.Context(),
		&runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"touch", "/tmp/go"}, Timeout: 30}); err != nil {
		t.Error(err)
	}
	if err := errors.Join(<-executed, ended()); err != nil {
		t.Error(err)
	}
	if err := d.HandOver(t)(); err != nil { // with no operation in progress
		t.Errorf("the second daemon: %v", err)
	}
	for id, want := range map[string]int{"0": 0, strconv.Itoa(os.Getpid()): 0, "kurid": 1, "-1": 1} {
		if said, code := harness.RunKurid(t, "hand-over", id); code != want ||
			(code != 0) != strings.Contains(said, "is not a process id") {
			t.Errorf("kurid hand-over %s: exit code %d, want %d: %s", id, code, want, said)
		}
	}
}

// begun waits until the command in a container has created its mark.
func begun(t *testing.T, d *harness.Daemon, container string) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, "the command runs", func() error {
		r, err := d.Runtime.ExecSync(t.Context(),
			&runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"ls", "/tmp/began"}})
		if err == nil && r.ExitCode != 0 {
			err = errors.New("not yet")
		}
		return err
	})
}

// If the file of a socket was removed, the next daemon creates the socket again and does not use
// the holder's.
func TestSocketRemoved(t *testing.T) {
	d := harness.Start(t, harness.Options{NoPods: true})
	d.Stop(t)
	if err := os.Remove(d.Socket); err != nil {
		t.Fatal(err)
	}
	d.Continue(t)
	if _, err := d.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Error(err)
	}
}
