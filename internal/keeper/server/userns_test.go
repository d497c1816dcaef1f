package server_test

import (
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

func TestUserNamespace(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	probed, err := n.Probe(t.Context(), dir, t.TempDir())
	n.must(err)
	if probed.NoUserNamespaces != "" {
		t.Skipf("SKIP: no user namespaces here: %s", probed.NoUserNamespaces)
	}
	_, err = n.Probe(t.Context(), "relative", "")
	wantKind(t, err, fault.Invalid)

	ids := []*api.IDMapping{{HostId: 1 << 20, Length: 1000}} // too few for the init's own id
	before := n.descriptors()
	for _, pid := range []bool{false, true, false, true} {
		box := n.sandbox(func(req *api.CreateSandboxRequest) { req.UidMappings, req.GidMappings, req.Pid = ids, ids, pid })
		exit, out := n.finish(box,
			"id -u; cat /proc/self/uid_map; stat -c %u /bin/busybox /dev/shm /overlay/busybox; hostname; echo out > /dev/stdout",
			func(j *job) {
				n.must(os.Chown(j.Rootfs.Upperdir, 1<<20, 1<<20))
				target := strings.TrimSuffix(j.spec.Root.Path, "rootfs") + "bin"
				j.Overlays = []*api.Overlay{{Lowerdirs: []string{n.layers[1] + "/bin"}, Target: target}}
				j.spec.Mounts = append(j.spec.Mounts, specs.Mount{Destination: "/overlay", Type: "bind", Source: target,
					Options: []string{"rbind", "ro"}})
			})
		if want := "0 0 1048576 1000 0 0 0 web out"; exit.Code != 0 || strings.Join(strings.Fields(out), " ") != want {
			t.Errorf("shared processes %v: exit %d, %q", pid, exit.Code, out)
		}
		n.must(n.RemoveSandbox(t.Context(), box.Id))
	}
	// Some are opened once and kept. The garbage collector closes those of processes.
	if after := n.descriptors(); after > before+4 {
		t.Errorf("%d descriptors became %d", before, after)
	}
	if mounts := n.mounts(); len(mounts) != 1 {
		t.Errorf("the host has mounts:\n%s", strings.Join(mounts, "\n"))
	}
}
