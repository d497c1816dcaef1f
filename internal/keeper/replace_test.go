package keeper

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

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
	if err := c.replaceAlone(t.Context(), Options{StateDir: dir}, programs{},
		&api.InfoResponse{Pid: int32(old.Process.Pid)}); err != nil {
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

// A process runs the installed program if it runs that file, or a copy of it.
func TestDiffers(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	body, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	install := func(name string, content []byte) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", content, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := func(program string, files ...*os.File) int32 {
		t.Helper()
		cmd := exec.Command(program, "1000")
		cmd.Args[0], cmd.ExtraFiles = "sleep", files
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return int32(cmd.Process.Pid)
	}
	inMemory := func(content []byte) int32 { // as the keepers of 0.1 and 0.2 run
		t.Helper()
		fd, err := unix.MemfdCreate("runc_cloned:kuri-keeper", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "copy")
		defer f.Close()
		if _, err := f.Write(content); err != nil {
			t.Fatal(err)
		}
		return run("/proc/self/fd/3", f)
	}

	// as long, and runs: its end is no code
	other := append(append([]byte(nil), body[:len(body)-1]...), body[len(body)-1]^1)
	path := install("program", body)
	itself := run(path)
	for name, tt := range map[string]struct {
		pid  int32
		want bool
	}{
		"the file":                  {itself, false},
		"a copy elsewhere":          {run(install("copy", body)), false},
		"another":                   {run(install("other", other)), true},
		"a copy in memory":          {inMemory(body), false},
		"a copy of other in memory": {inMemory(other), true},
	} {
		if got := differs(tt.pid, path); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if install("program", body); differs(itself, path) {
		t.Error("the same build, installed again, is another")
	}
	if install("program", other); !differs(itself, path) {
		t.Error("another build, installed in its place, is the same")
	}
}
