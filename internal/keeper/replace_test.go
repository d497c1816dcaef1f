package keeper

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// oneContainer is a keeper whose only container has lost its sandbox.
type oneContainer struct{ api.KeeperService }

func (oneContainer) List(context.Context, *api.ListRequest) (*api.ListResponse, error) {
	return &api.ListResponse{Containers: []*api.Container{{Id: "c"}}}, nil
}

// A keeper with a container is not ended, even without a sandbox.
func TestReplaceAloneWithAContainer(t *testing.T) {
	dir := t.TempDir()
	listener, err := net.Listen("unix", filepath.Join(dir, "keeper.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	api.RegisterKeeperService(srv, oneContainer{})
	served := make(chan struct{})
	go func() { srv.Serve(t.Context(), listener); close(served) }()
	c := Connect(dir)
	t.Cleanup(func() { c.Close(); srv.Close(); <-served })

	old := exec.Command("sleep", "1000")
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { old.Process.Kill(); old.Wait() })
	if err := c.replaceAlone(t.Context(), Options{StateDir: dir}, programs{}, &api.InfoResponse{Pid: int32(old.Process.Pid)}); err != nil {
		t.Error(err)
	}
}

func TestKeepsRecords(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"sandboxes/box.json", "containers/in-box.json"} {
		path = filepath.Join(dir, "keeper", path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		box, container string
		want           bool
	}{{"box", "other", true}, {"lost", "in-box", true}, {"lost", "other", false}} {
		held := &api.ListResponse{Sandboxes: []*api.Sandbox{{Id: tt.box}}, Containers: []*api.Container{{Id: tt.container}}}
		if got := keepsRecords(dir, held); got != tt.want {
			t.Errorf("sandbox %s, container %s: %t", tt.box, tt.container, got)
		}
	}
}

// TestDiffers has processes run from named copies of a file: that it is the same is known by the name as long as nobody has
// touched the file, by the content else.
func TestDiffers(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	body, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, body, 0o755); err != nil {
		t.Fatal(err)
	}
	old := func() (os.FileInfo, string) {
		t.Helper()
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		id, _ := fileState(st)
		return st, id + "/" + copyName
	}
	// run runs a copy of content under a name.
	run := func(name string, content []byte) int32 {
		t.Helper()
		fd, err := unix.MemfdCreate("runc_cloned:"+name, unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), name)
		defer f.Close()
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/fd/3", "1000")
		cmd.Args[0], cmd.ExtraFiles = "sleep", []*os.File{f}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return int32(cmd.Process.Pid)
	}

	other := append(append([]byte(nil), body[:len(body)-1]...), body[len(body)-1]^1) // as long, and runs: its end is no code
	st, name := old()
	if got := CopyName(st); got != copyName {
		t.Errorf("a file of this moment has the name %q", got)
	}
	for limit := time.Now().Add(30 * time.Second); CopyName(st) == copyName; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("no name says which file it is")
		}
	}
	if got := CopyName(st); got != name {
		t.Errorf("%q, want %q", got, name)
	}
	// The name alone tells: what lies behind it is something else.
	byName, byContent, foreign := run(name, other), run(copyName, body), run(copyName, other)
	for pid, want := range map[int32]bool{byName: false, byContent: false, foreign: true} {
		if got := differs(pid, path); got != want {
			link, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
			t.Errorf("a process that runs %s differs: %v", link, got)
		}
	}
	// Once the file has changed the name is of another.
	if err := os.WriteFile(path, body, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, now := old(); now == name {
		t.Fatalf("the file is still %s", name)
	}
	if !differs(byName, path) {
		t.Error("a copy of the file before is taken for one of this file")
	}
	if strings.Contains(name, ":") || len(name) > 200 {
		t.Errorf("the name %q", name)
	}
}
