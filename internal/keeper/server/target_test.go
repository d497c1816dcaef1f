package server_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
)

// A PID namespace is shared only with a running container of the sandbox, never with another
// process that has reused its pid.
func TestSharedPIDNamespaceIsAContainers(t *testing.T) {
	n := newNode(t)
	box, other := n.sandbox(), n.sandbox()
	of := func(pid int) func(*job) {
		return func(j *job) {
			j.spec.Linux.Namespaces = slices.DeleteFunc(j.spec.Linux.Namespaces,
				func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
			j.spec.Linux.Namespaces = append(j.spec.Linux.Namespaces,
				specs.LinuxNamespace{Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", pid)})
		}
	}
	target := n.run(box, "echo ready; exec sleep 4361")
	n.waitOutput(target, "ready")
	list, err := n.List(t.Context())
	n.must(err)
	pid := int(list.Containers[0].Pid)
	join := func() {
		if _, out := n.finish(box, "tr '\\0' ' ' </proc/1/cmdline", of(pid)); !strings.Contains(out, "sleep 4361") {
			t.Errorf("the first process is %q", out)
		}
	}
	join()
	before := n.descriptors()
	join()
	if !eventually(func() bool { return n.descriptors() <= before }) {
		t.Errorf("the keeper had %d descriptors after the first of them, and after the second %d", before, n.descriptors())
	}

	// A process of no container in its own namespace, like one that has reused the pid.
	stranger := exec.Command("sleep", "4362")
	stranger.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	n.must(stranger.Start())
	defer func() {
		stranger.Process.Kill()
		stranger.Wait()
	}()
	_, err = n.Create(t.Context(), n.job(box, "true", of(stranger.Process.Pid)).CreateRequest)
	wantKind(t, err, fault.Precondition)
	_, err = n.Create(t.Context(), n.job(other, "true", of(pid)).CreateRequest)
	wantKind(t, err, fault.Precondition)
}
