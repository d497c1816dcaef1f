package oci

import (
	"os"
	"reflect"
	"strconv"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/namespace"
)

// A specification that has the mappings of the user namespace that it joins makes the same
// configuration as one for which libcontainer reads them.
func TestMappingsThatAreKnownAreNotRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: user namespaces with mappings need root")
	}
	ids := []specs.LinuxIDMapping{{HostID: 1 << 20, Size: 1000}}
	mapped := specs.Mount{Destination: "/a", Type: "bind", Source: "/", Options: []string{"bind", "idmap"}, UIDMappings: ids, GIDMappings: ids}
	inherits := specs.Mount{Destination: "/b", Type: "bind", Source: "/", Options: []string{"bind", "ridmap"}}
	var l Libcontainer
	err := namespace.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // configure changes the working directory
			return err
		}
		pid, end, err := l.CreateUser(0, &namespace.Mapping{
			UIDs: []syscall.SysProcIDMap{{HostID: 1 << 20, Size: 1000}}, GIDs: []syscall.SysProcIDMap{{HostID: 1 << 20, Size: 1000}},
		})
		if err != nil {
			return err
		}
		defer end()
		for _, mounts := range [][]specs.Mount{nil, {mapped}, {mapped, inherits}} {
			spec := &specs.Spec{
				Version: specs.Version, Root: &specs.Root{Path: "/"}, Process: &specs.Process{Args: []string{"x"}, Cwd: "/"}, Mounts: mounts,
				Linux: &specs.Linux{
					CgroupsPath: "/x",
					Namespaces: []specs.LinuxNamespace{
						{Type: specs.MountNamespace}, {Type: specs.UserNamespace, Path: "/proc/" + strconv.Itoa(pid) + "/ns/user"}, {Type: specs.PIDNamespace},
					},
				},
			}
			want, err := l.configure(t.Context(), "id", "/", spec, false)
			if err != nil {
				return err
			}
			spec.Linux.UIDMappings, spec.Linux.GIDMappings = ids, ids
			got, err := l.configure(t.Context(), "id", "/", spec, false)
			if err != nil {
				return err
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%d mounts: %+v, not %+v", len(mounts), got, want)
			}
			if path := spec.Linux.Namespaces[1].Path; path == "" || spec.Linux.UIDMappings == nil {
				t.Error("the specification was changed")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
