package ocitest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
)

// node is a runtime and the parts of containers.
type node struct {
	t       *testing.T
	of      Implementation
	runtime oci.Runtime
	root    string // of the runtime's records
	layer   string // the files of all containers
	cgroup  string // the parent of all cgroups
	groups  *cgroup.Hierarchies
	next    int
}

func newNode(t *testing.T, of Implementation) *node {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: containers need root")
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("SKIP: /bin/busybox (busybox-static) is not installed")
	}
	n := &node{t: t, of: of, root: filepath.Join(t.TempDir(), "records"), layer: t.TempDir(),
		cgroup: fmt.Sprintf("/kuri-ocitest-%d", os.Getpid())}
	if n.groups, err = cgroup.Open(); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	for _, dir := range []string{"bin", "proc", "dev"} {
		n.must(os.MkdirAll(filepath.Join(n.layer, dir), 0o755))
	}
	n.must(os.WriteFile(filepath.Join(n.layer, "bin/busybox"), busybox, 0o755))
	out, err := exec.Command("/bin/busybox", "--list").Output()
	n.must(err)
	for name := range strings.FieldsSeq(string(out)) {
		if name != "busybox" {
			n.must(os.Symlink("busybox", filepath.Join(n.layer, "bin", name)))
		}
	}
	n.must(os.WriteFile(filepath.Join(n.layer, "plain"), []byte("plain\n"), 0o644))
	n.must(unix.Mkfifo(filepath.Join(n.layer, "fifo"), 0o600))
	n.runtime = of.Open(n.root)
	first := n.runtime
	t.Cleanup(func() {
		first.Close()
		if err := n.groups.Remove(n.cgroup); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// start starts a container. begun uses the descriptor, as the keeper's holder does.
func (n *node) start(c *container) error {
	return n.runtime.Start(c.id, func(f *os.File) {
		if _, err := f.Stat(); err != nil {
			n.t.Errorf("what lets the container go: %v", err)
		}
	}, c.pidfd.HasEnded)
}

// runs creates, starts and removes a container.
func (n *node) runs(script string) error {
	c := n.run(script)
	c.wait()
	return n.runtime.Delete(c.id)
}

// nothingLeft checks that nothing of a container remains.
func (n *node) nothingLeft(c *container) {
	n.t.Helper()
	if ids, err := n.runtime.All(); err != nil || slices.Contains(ids, c.id) {
		n.t.Errorf("records are left: %v, %v", ids, err)
	}
	if _, err := n.runtime.Left(c.id); !errors.Is(err, fault.NotFound) {
		n.t.Errorf("left: %v", err)
	}
	if roots := n.groups.Roots(c.spec.Linux.CgroupsPath); len(roots) > 0 {
		n.t.Errorf("cgroups are left in %v", roots)
	}
}

// container is a container from its bundle on.
type container struct {
	*node
	id, bundle string
	spec       *specs.Spec
	made       *oci.Created
	pidfd      *process.Pidfd
	ended      bool
	said       string // the file with its standard output and error
}

func bind(source, target string) specs.Mount {
	return specs.Mount{Type: "bind", Source: source, Destination: target, Options: []string{"rbind"}}
}

// container writes the bundle of a container that runs a shell script.
func (n *node) container(script string, change ...func(*specs.Spec)) *container {
	n.t.Helper()
	n.next++
	dir := n.t.TempDir()
	c := &container{node: n, id: fmt.Sprintf("c%d", n.next), bundle: filepath.Join(dir, "bundle"),
		said: filepath.Join(dir, "said")}
	caps := []string{"CAP_CHOWN", "CAP_KILL"}
	c.spec = &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: filepath.Join(dir, "rootfs")},
		Process: &specs.Process{
			Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
				Options: []string{"nosuid", "newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: n.cgroup + "/" + c.id,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}},
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
		},
	}
	for _, fn := range change {
		fn(c.spec)
	}
	n.must(os.MkdirAll(c.spec.Root.Path, 0o755))
	n.must(os.MkdirAll(c.bundle, 0o755))
	body, err := json.Marshal(c.spec)
	n.must(err)
	n.must(os.WriteFile(filepath.Join(c.bundle, "config.json"), body, 0o600))
	return c
}

func (n *node) create(script string) *container {
	n.t.Helper()
	c := n.container(script)
	n.must(c.create())
	return c
}

func (n *node) run(script string) *container {
	n.t.Helper()
	c := n.create(script)
	c.start()
	return c
}

// create makes the runtime create the container, on a thread as [oci.Runtime] requires.
func (c *container) create() error {
	said, err := os.OpenFile(c.said, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	c.must(err)
	defer said.Close()
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread exits with the goroutine
		failed <- func() (err error) {
			if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
				return err
			}
			if err := unix.Mount(c.layer, c.spec.Root.Path, "", unix.MS_BIND, ""); err != nil {
				return err
			}
			spec, err := oci.ReadSpec(c.bundle)
			if err != nil {
				return err
			}
			c.made, err = c.runtime.Create(context.Background(), c.id, c.bundle, spec, false,
				oci.Stdio{Stdout: said, Stderr: said})
			return err
		}()
	}()
	if err := <-failed; err != nil {
		return err
	}
	c.pidfd, err = process.Open(c.made.Pid)
	c.must(err)
	c.t.Cleanup(func() {
		if !c.ended {
			c.made.Cgroup.Kill(limit)
			c.pidfd.Signal(unix.SIGKILL)
			_, _ = process.Reap(c.made.Pid)
			_ = c.runtime.Delete(c.id)
		}
		c.pidfd.Close()
	})
	return nil
}

func (c *container) start() {
	c.t.Helper()
	c.must(c.node.start(c))
}

// wait reaps the first process and returns its exit code.
func (c *container) wait() int {
	c.t.Helper()
	if !c.pidfd.Ends(limit) {
		c.t.Fatalf("process %s does not end", process.Describe(c.made.Pid))
	}
	status, err := process.Reap(c.made.Pid)
	c.must(err)
	c.ended = true
	return process.ExitCode(status)
}

// output returns the output of the container so far.
func (c *container) output() string {
	c.t.Helper()
	body, err := os.ReadFile(c.said)
	c.must(err)
	return string(body)
}

// exec runs a command in the container until it exits.
func (c *container) exec(ctx context.Context, x *oci.Executor, seq uint64,
	args ...string) (code int, out string, err error) {
	c.t.Helper()
	ours, theirs, err := os.Pipe()
	c.must(err)
	defer ours.Close()
	told := 0
	running, err := c.runtime.Exec(ctx, x, c.pidfd, seq, args, oci.Stdio{Stdout: theirs, Stderr: theirs},
		func() error { told++; return nil })
	theirs.Close()
	if err != nil {
		return 0, "", err
	}
	if told > 1 || (told == 1) != (running.Line() == nil) {
		c.t.Errorf("told %d times that there is no start line, which there is: %v", told, running.Line() != nil)
	}
	if err := running.Release(ctx); err != nil {
		running.Abandon()
		c.must(running.Kill(limit))
		_, _ = running.Wait()
		c.must(running.Leave())
		return 0, "", err
	}
	var said bytes.Buffer
	if _, err := io.Copy(&said, ours); err != nil {
		c.t.Error(err)
	}
	code, err = running.Wait()
	c.must(err)
	c.must(running.Leave())
	return code, said.String(), nil
}

func entries(pattern string) []string {
	found, _ := filepath.Glob(pattern)
	return found
}
