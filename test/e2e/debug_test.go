package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// state has the fields of the output of kuri debug state that the test checks.
type state struct {
	Operations []struct {
		Method, Step, Caller, Pod, Container string
		ContainerID                          string  `json:"container_id"`
		StepAge                              float64 `json:"step_age"`
	}
	Goroutines int
	Pods       []struct {
		Name, State string
		Containers  []struct {
			ID, Name, State string
			Pid             int
		}
	}
	About struct {
		Programs map[string]struct {
			Pid     int
			Version string
		}
	}
}

// The state dump lists the operations in progress, their steps and their callers, and contains no secrets.
func TestDebugState(t *testing.T) {
	s := newShell(t)
	c := s.run(t, func(c *container, _ *security) {
		c.Envs = append(c.Envs, &runtimeapi.KeyValue{Key: "PASSWORD", Value: []byte("secret-of-the-pod")})
	}, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done")
	s.awaits(t, c)
	stopped := make(chan error, 1)
	go func() {
		_, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c, Timeout: 3600})
		stopped <- err
	}()
	var got state
	harness.Eventually(t, time.Minute, "the stop is in the dump", func() error {
		said, stderr, code := s.Kuri(t, "debug", "state")
		if code != 0 {
			t.Fatal(stderr)
		}
		if strings.Contains(said, "secret-of-the-pod") {
			t.Fatalf("the dump has the environment: %s", said)
		}
		got = state{}
		if err := json.Unmarshal([]byte(said), &got); err != nil {
			t.Fatal(err)
		}
		for _, o := range got.Operations {
			if o.Method == "StopContainer" && o.Step == "grace" {
				if o.ContainerID != c || o.Container != "c1" || o.Pod != "shell" || o.StepAge <= 0 ||
					!strings.HasPrefix(o.Caller, "e2e.test, pid ") {
					t.Errorf("%+v", o)
				}
				return nil
			}
		}
		return fmt.Errorf("%s", said)
	})
	if got.Goroutines == 0 || len(got.Pods) != 1 || got.Pods[0].State != "ready" || len(got.Pods[0].Containers) != 1 ||
		got.Pods[0].Containers[0].Pid == 0 ||
		got.About.Programs["kurid"].Pid != s.Pid() || got.About.Programs["keeper"].Pid != s.KeeperPid() ||
		got.About.Programs["holder"].Pid != s.HolderPid() {
		t.Errorf("%+v", got)
	}
	if _, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c}); err != nil {
		t.Error(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestDebugProfilesAndStacks(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	file := filepath.Join(t.TempDir(), "heap.pprof")
	if _, stderr, code := d.Kuri(t, "debug", "pprof", "heap", "-o", file); code != 0 {
		t.Fatal(stderr)
	}
	body, err := os.ReadFile(file)
	if err != nil || !strings.HasPrefix(string(body), "\x1f\x8b") {
		t.Errorf("%.20q, %v", body, err)
	}
	if said, stderr, code := d.Kuri(t, "debug", "pprof", "profile", "--seconds", "1"); code != 0 ||
		!strings.HasPrefix(said, "\x1f\x8b") {
		t.Errorf("%.20q, %s", said, stderr)
	}
	if _, stderr, code := d.Kuri(t, "debug", "pprof", "heat"); code == 0 ||
		!strings.Contains(stderr, "allocs, block, goroutine, heap") {
		t.Error(stderr)
	}
	if said, _, code := d.Kuri(t, "debug", "stacks"); code != 0 || !strings.Contains(said, "goroutine ") {
		t.Errorf("%.200s", said)
	}
	if err := syscall.Kill(d.Pid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, time.Minute, "the stacks are in the log", func() error {
		if !strings.Contains(d.Log(t), "=== END goroutine stacks ===") {
			return errors.New("they are not")
		}
		return nil
	})
	if !strings.Contains(d.Log(t), "main.serve") {
		t.Error("the log has no stack of kurid's")
	}
	if _, stderr, code := d.Kuri(t, "pods"); code != 0 {
		t.Errorf("kurid after SIGUSR1: %s", stderr)
	}
}

// The keeper and the streaming process have a debug interface like kurid's.
func TestDebugOtherProcesses(t *testing.T) {
	s := newShell(t)
	c := s.run(t, nil, "sleep", "1000")
	if said, stderr, code := s.Kuri(t, "daemon", "stacks", "--of", "keeper"); code != 0 ||
		!strings.Contains(said, "internal/keeper/server.(*Server).watch(") {
		t.Errorf("%.500s, %s", said, stderr)
	}
	for want, args := range map[string][]string{
		"make kuri-keeper LEAN= builds": {"daemon", "pprof", "heap", "--of", "keeper"},
		"unknown profile":               {"daemon", "pprof", "mutex", "--of", "keeper"},
		"no process streams now":        {"daemon", "stacks", "--of", "streams"},
		"kurid, keeper and streams":     {"daemon", "stacks", "--of", "holder"},
		"0 is not from 1 to 600":        {"daemon", "pprof", "heap", "--of", "keeper", "--seconds", "0"},
	} {
		if _, stderr, code := s.Kuri(t, args...); code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("kuri %v: exit code %d, %s; want %q", args, code, stderr, want)
		}
	}
	s.execURL(t, &runtimeapi.ExecRequest{ContainerId: c, Cmd: []string{"true"}, Stdout: true}) // which starts the process
	if said, stderr, code := s.Kuri(t, "daemon", "stacks", "--of", "streams"); code != 0 ||
		!strings.Contains(said, "internal/stream.Serve(") {
		t.Errorf("%.500s, %s", said, stderr)
	}
	if said, stderr, code := s.Kuri(t, "daemon", "pprof", "heap", "--of", "streams"); code != 0 ||
		!strings.HasPrefix(said, "\x1f\x8b") {
		t.Errorf("%.20q, %s", said, stderr)
	}
	// Streaming URLs are served while a profile is taken. The profile ends when its client disconnects.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answered := make(chan string, 1)
	go func() {
		status, err := debugStatus(ctx, s.Daemon, "/debug/streams/pprof/profile?seconds=600")
		answered <- fmt.Sprint(status, " ", err)
	}()
	refused := func() error {
		_, stderr, code := s.Kuri(t, "daemon", "stacks", "--of", "streams")
		if code != 0 && strings.Contains(stderr, "another profile of this process is being taken") {
			return nil
		}
		select {
		case early := <-answered:
			t.Fatal("the profile has ended: ", early)
		default:
		}
		return fmt.Errorf("exit code %d, %s", code, stderr)
	}
	harness.Eventually(t, time.Minute, "a second profile is refused", refused)
	s.execURL(t, &runtimeapi.ExecRequest{ContainerId: c, Cmd: []string{"true"}, Stdout: true})
	cancel()
	harness.Eventually(t, time.Minute, "stacks are told again", func() error {
		if _, stderr, code := s.Kuri(t, "daemon", "stacks", "--of", "streams"); code != 0 {
			return errors.New(stderr)
		}
		return nil
	})
}

// debugStatus sends a request to the debug socket of a daemon and returns the HTTP status.
func debugStatus(ctx context.Context, d *harness.Daemon, path string) (string, error) {
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(d.State, "debug.sock"))
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://kurid"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return fmt.Sprintf("%s: %.100q", resp.Status, body), err
}
