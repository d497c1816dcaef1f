package server

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/step"
)

func TestDebugSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "debug.sock")
	s, err := Listen(Options{Listen: filepath.Join(dir, "kuri.sock"), DebugListen: path, Version: "9.9",
		Socket: sockets(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: others than root may open it", info, err)
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	get := func(what string) string {
		resp, err := client.Get("http://kurid" + what)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %v", what, resp.Status, err)
		}
		return string(body)
	}

	ctx, op := s.operations.Begin(t.Context(), "RunPodSandbox", step.Subject{Namespace: "default", Pod: "web"},
		step.Caller{Pid: 7, UID: 0, Program: "kubelet"})
	step.Enter(ctx, "namespaces")
	step.Enter(ctx, "network")
	var dump stateDump
	if err := json.Unmarshal([]byte(get("/debug/state")), &dump); err != nil {
		t.Fatal(err)
	}
	if dump.Pid != os.Getpid() || dump.Version != "9.9" || dump.Goroutines < 2 || dump.Memory.Heap == 0 ||
		len(dump.Operations) != 1 {
		t.Fatalf("%+v", dump)
	}
	o := dump.Operations[0]
	if o.Method != "RunPodSandbox" || o.Pod != "web" || o.Step != "network" || len(o.Steps) != 1 ||
		!strings.HasPrefix(o.Steps[0], "namespaces ") ||
		o.Caller != "kubelet, pid 7, uid 0" || o.Given {
		t.Errorf("%+v", o)
	}
	op.Answer(nil)
	if got := get("/debug/state"); !strings.Contains(got, `"operations": []`) {
		t.Error(got)
	}
	if got := get("/debug/pprof/heap"); !strings.HasPrefix(got, "\x1f\x8b") {
		t.Errorf("heap: %.20q", got)
	}
	if got := get("/debug/pprof/goroutine?debug=2"); !strings.Contains(got, "server.TestDebugSocket") {
		t.Errorf("goroutine: %.200s", got)
	}
	if got := get("/metrics"); !strings.Contains(got, "\nkuri_build_info{version=\"9.9\"} 1\n") {
		t.Errorf("metrics: %.200s", got)
	}
}
