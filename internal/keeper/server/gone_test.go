package server_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// The end of the init of a shared PID namespace is reported by an event and by List, and no
// container can be created in it.
func TestTheEndOfAPodsInitIsTold(t *testing.T) {
	n := newNode(t)
	box := n.sandbox(func(r *api.CreateSandboxRequest) { r.Pid, r.CgroupsPath = true, n.cgroup+"/init" })
	j := n.run(box, "sleep 1000")
	before, err := n.Info(t.Context())
	n.must(err)
	n.must(syscall.Kill(int(box.InitPid), syscall.SIGKILL))
	want := fmt.Sprintf("the init of its PID namespace, process %d, has ended (signal 9, SIGKILL)", box.InitPid)
	var told *api.Sandbox
	for after := before.LastEvent; told == nil; {
		resp, err := n.Events(t.Context(), after, 5*time.Second)
		n.must(err)
		if len(resp.Events) == 0 {
			t.Fatal("no event tells it")
		}
		for _, e := range resp.Events {
			after = e.Seq
			if e.Sandbox != nil {
				told = e.Sandbox
			}
		}
	}
	if told.Id != box.Id || told.Gone != want {
		t.Errorf("told %q of %s, want %q", told.Gone, told.Id, want)
	}
	list, err := n.List(t.Context())
	n.must(err)
	if len(list.Sandboxes) != 1 || list.Sandboxes[0].Gone != want {
		t.Errorf("list: %v", list.Sandboxes)
	}
	_, err = n.Create(t.Context(), n.job(box, "true").CreateRequest)
	if !errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), want) {
		t.Errorf("create: %v", err)
	}
	n.must(n.Delete(t.Context(), j.Id))
	n.must(n.RemoveSandbox(t.Context(), box.Id))

	// A sandbox that is being removed reports nothing.
	box = n.sandbox(func(r *api.CreateSandboxRequest) { r.Pid, r.CgroupsPath = true, n.cgroup+"/init" })
	info, err := n.Info(t.Context())
	n.must(err)
	n.must(n.RemoveSandbox(t.Context(), box.Id))
	if after, err := n.Info(t.Context()); err != nil || after.LastEvent != info.LastEvent {
		t.Errorf("the removal of a sandbox is an event: %v, %v", after, err)
	}
}

// Each reason for which a container's program cannot run has its own error kind.
func TestContainersThatCannotBeStarted(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	program := func(args ...string) func(*job) { return func(j *job) { j.spec.Process.Args = args } }
	for name, change := range map[string]func(*job){
		"missing":        program("/nonesuch"),
		"not in PATH":    program("nonesuch"),
		"not executable": program("/etc/passwd"),
		"a directory":    program("/etc"),
		"cwd is a file":  func(j *job) { j.spec.Process.Cwd = "/etc/passwd" },
		"mount onto a file": func(j *job) {
			j.spec.Mounts = append(j.spec.Mounts, specs.Mount{Destination: "/etc/passwd", Type: "bind", Source: "/tmp",
				Options: []string{"rbind"}})
		},
	} {
		_, err := n.Create(t.Context(), n.job(box, "true", change).CreateRequest)
		if !errors.Is(err, fault.Unstartable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A keeper without free descriptors reports that, and continues once there are some.
func TestAKeeperWithoutDescriptors(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, "sleep 1000")
	n.exec(j, "true")
	info, err := n.Info(t.Context())
	n.must(err)
	var before unix.Rlimit
	n.must(unix.Prlimit(int(info.Pid), unix.RLIMIT_NOFILE, nil, &before))
	// Calls need different numbers of descriptors: each limit fails another step.
	for more := range 12 {
		limit := unix.Rlimit{Cur: uint64(n.descriptors() + more), Max: before.Max}
		n.must(unix.Prlimit(int(info.Pid), unix.RLIMIT_NOFILE, &limit, nil))
		done := make(chan error, 2)
		go func() {
			_, err := n.Exec(t.Context(), j.Id, []string{"true"}, false, keeper.Streams{})
			done <- err
		}()
		next := n.job(box, "true")
		_, cerr := n.Create(t.Context(), next.CreateRequest)
		if cerr != nil && !errors.Is(cerr, fault.Exhausted) {
			t.Errorf("create with %d descriptors: %v", more, cerr)
		}
		time.Sleep(50 * time.Millisecond)
		n.must(unix.Prlimit(int(info.Pid), unix.RLIMIT_NOFILE, &before, nil))
		if err := <-done; err != nil && !errors.Is(err, fault.Exhausted) && !errors.Is(err, fault.Unavailable) {
			t.Errorf("exec with %d descriptors: %v", more, err)
		}
		if cerr != nil && !strings.Contains(cerr.Error(), "LimitNOFILE") {
			t.Errorf("create with %d descriptors: %v does not say what to do", more, cerr)
		}
		n.must(n.Delete(t.Context(), next.Id))
	}
	if code, out, _ := n.exec(j, "echo on"); code != 0 || out != "on\n" {
		t.Errorf("afterwards: exit code %d, %q", code, out)
	}
}

// User namespaces do not work below a state directory that others cannot enter, and the reason
// names the directory.
func TestUserNamespacesBelowAPrivateDirectory(t *testing.T) {
	n := newNode(t)
	private := filepath.Dir(n.state)
	n.must(os.Chmod(private, 0o700))
	probed, err := n.Probe(t.Context(), t.TempDir(), "")
	n.must(err)
	if !strings.Contains(probed.NoUserNamespaces, "search "+private+":") {
		t.Errorf("probed: %q", probed.NoUserNamespaces)
	}
	n.must(os.Chmod(private, 0o711))
	if probed, err = n.Probe(t.Context(), t.TempDir(), ""); err != nil ||
		strings.Contains(probed.NoUserNamespaces, "search ") {
		t.Errorf("probed: %q, %v", probed.NoUserNamespaces, err)
	}
}
