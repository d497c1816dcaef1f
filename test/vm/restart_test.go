package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/test/harness"
)

// counting is a script for a container that prints numbers without pause.
const counting = "i=0; while :; do echo $i; i=$((i+1)); [ $((i % 50)) = 0 ] && sleep 0.1; done"

// counted reads the numbers that a container printed and returns how many there are. They must be
// consecutive, except that a part of the log may be repeated.
func counted(t *testing.T, log string) int {
	t.Helper()
	body, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	next := 0
	for line := range strings.Lines(string(body)) {
		if !strings.HasSuffix(line, "\n") {
			break // the line is still being written
		}
		parts := strings.SplitN(strings.TrimSpace(line), " ", 4)
		var n int
		if _, err := fmt.Sscan(parts[len(parts)-1], &n); err != nil || n > next {
			t.Fatalf("%q follows %d", line, next-1)
		}
		if n == next {
			next++
		}
	}
	return next
}

// goesOn waits until a counting container has printed more.
func goesOn(t *testing.T, log string) {
	t.Helper()
	reached := counted(t, log)
	harness.Eventually(t, time.Minute, "the log goes on", func() error {
		if now := counted(t, log); now <= reached {
			return fmt.Errorf("it has %d lines", now)
		}
		return nil
	})
}

// poller calls a daemon as a kubelet does, over persistent connections, and also opens new ones,
// until end is called. It polls no faster than an emulated machine can answer beside its own work.
type poller struct {
	stop  context.CancelFunc
	done  sync.WaitGroup
	calls atomic.Int64
	mu    sync.Mutex // guards failed
	fails []error
}

func poll(t *testing.T, pod, container string) *poller {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	o := client.Options{Timeout: harness.Patient(time.Minute)}
	rt, err := client.DialRuntime(ctx, socket, o)
	if err != nil {
		t.Fatal(err)
	}
	images, err := client.DialImages(ctx, socket, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rt.Close(); images.Close() })
	p := &poller{stop: stop}
	for name, call := range map[string]func() error{
		"Status":         func() error { _, err := rt.Status(ctx, &runtimeapi.StatusRequest{}); return err },
		"ListPods":       func() error { _, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); return err },
		"ListContainers": func() error { _, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); return err },
		"ListImages":     func() error { _, err := images.ListImages(ctx, &runtimeapi.ListImagesRequest{}); return err },
		"PodStatus": func() error {
			_, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
			return err
		},
		"ExecSync": func() error {
			r, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}, Timeout: 60})
			if err == nil && r.ExitCode != 0 {
				err = fmt.Errorf("exit code %d", r.ExitCode)
			}
			return err
		},
		"dial": func() error {
			conn, err := net.Dial("unix", strings.TrimPrefix(socket, "unix://"))
			if err == nil {
				conn.Close()
			}
			return err
		},
	} {
		p.done.Go(func() {
			for every := time.Tick(500 * time.Millisecond); ctx.Err() == nil; <-every {
				err := call()
				if ctx.Err() != nil {
					return
				}
				p.calls.Add(1)
				if err != nil {
					p.mu.Lock()
					p.fails = append(p.fails, fmt.Errorf("%s: %w", name, err))
					p.mu.Unlock()
				}
			}
		})
	}
	return p
}

// end stops the polling and fails t for each failed call.
func (p *poller) end(t *testing.T) {
	t.Helper()
	p.stop()
	p.done.Wait()
	for _, err := range p.fails {
		t.Errorf("a call failed: %v", err)
	}
	if p.calls.Load() == 0 {
		t.Error("nothing was called")
	}
	t.Logf("%d calls", p.calls.Load())
}

// anotherBuild replaces the installed programs with copies of different content and the same
// function, as a package manager does.
func anotherBuild(t *testing.T) {
	t.Helper()
	for _, name := range []string{"kurid", "kuri-keeper", "kuri-holder"} {
		body, err := os.ReadFile(filepath.Join(installed, name))
		if err != nil {
			t.Fatal(err)
		}
		install(t, name, append(body, '!'))
	}
}

// installed is the directory into which the story installs the programs.
const installed = "/usr/local/bin"

// install replaces an installed program. Processes that run it keep the old file.
func install(t *testing.T, name string, body []byte) {
	t.Helper()
	path := filepath.Join(installed, name)
	if err := errors.Join(os.WriteFile(path+".new", body, 0o755), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// reinstall installs the programs of a directory: those of the build, or one of [killable] and [previous].
func reinstall(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		body, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		install(t, name, body)
	}
}

// systemctl restart with the same programs, with other ones, and with a socket of systemd's: no
// call fails and no connection is refused, even if the old kurid still has a command in progress,
// and the pod is not affected.
func TestRestartOfTheUnitFailsNoCall(t *testing.T) {
	d := start(t)
	image := d.PullBusybox(t)
	config := harness.Pod("polled")
	pod := d.RunPod(t, config)
	c := d.Run(t, pod, harness.Container("count", image, "sh", "-c", counting), config)
	pid, log := firstPid(t, d, c), filepath.Join(config.LogDirectory, "count.log")
	again := func(t *testing.T) {
		t.Helper()
		before := property(t, "kurid.service", "MainPID")
		p := poll(t, pod, c)
		systemctl(t, "restart", "kurid.service")
		if now := property(t, "kurid.service", "MainPID"); now == before || now == "0" {
			t.Errorf("the unit's main process was %s, and is %s", before, now)
		}
		dial(t, d)
		goesOn(t, log)
		p.end(t)
		if st := d.ContainerStatus(t, c); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
			firstPid(t, d, c) != pid || st.Message != "" {
			t.Errorf("the container is %s with process %d (%q), was %d", st.State, firstPid(t, d, c), st.Message, pid)
		}
	}
	t.Run("the same programs", func(t *testing.T) {
		keeper := d.KeeperPid()
		again(t)
		if now := d.KeeperPid(); now != keeper {
			t.Errorf("the keeper was process %d, and is %d", keeper, now)
		}
	})
	t.Run("an upgrade", func(t *testing.T) {
		keeper, holder := d.KeeperPid(), d.HolderPid()
		anotherBuild(t)
		again(t)
		if now := d.KeeperPid(); now == keeper || d.HolderPid() != holder {
			t.Errorf("the keeper was process %d and is %d, the holder was %d and is %d", keeper, now, holder, d.HolderPid())
		}
		if in := cgroup(t, d.KeeperPid()); !strings.HasSuffix(in, "/kuri-keeper.scope") {
			t.Errorf("the new keeper is in %s", in)
		}
	})
	t.Run("socket activation", func(t *testing.T) {
		systemctl(t, "stop", "kurid.service")
		harness.Write(t, "/etc/systemd/system", "kurid.socket",
			"[Socket]\nListenStream=/run/kuri/kuri.sock\nSocketMode=0600\n")
		systemctl(t, "daemon-reload")
		systemctl(t, "start", "kurid.socket") // any connection now starts kurid
		defer func() {
			systemctl(t, "stop", "kurid.service", "kurid.socket")
			os.Remove("/etc/systemd/system/kurid.socket")
			systemctl(t, "daemon-reload")
			systemctl(t, "start", "kurid.service")
			dial(t, d)
		}()
		dial(t, d)
		again(t)
	})
	d.RemovePod(t, pod)
}
