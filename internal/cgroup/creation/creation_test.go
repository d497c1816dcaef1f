package creation

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
)

// The cached mount points give the directories that the cgroup library finds.
func TestHierarchies(t *testing.T) {
	if cgroup.Unified() {
		t.Skip("SKIP: cgroup v2 has one hierarchy")
	}
	config := &cgroups.Cgroup{Path: "/kuri-test/../a//b", Resources: &cgroups.Resources{}}
	m, err := manager.New(config)
	if err != nil {
		t.Fatal(err)
	}
	var p Paths
	for range 2 { // the second answer is from the cache
		paths, err := p.Of(config)
		if err != nil {
			t.Fatal(err)
		}
		if want := m.GetPaths(); !maps.Equal(paths, want) || len(paths) == 0 {
			t.Errorf("have %v, want %v", paths, want)
		}
	}
	for _, c := range []*cgroups.Cgroup{{Path: "relative"}, {Parent: "/p", Name: "n"}, {Path: "/a", Systemd: true}} {
		if paths, err := p.Of(c); paths != nil || err != nil {
			t.Errorf("%+v: have %v, %v; the library's business", c, paths, err)
		}
	}
}

// A hierarchy that is mounted on an existing directory after the first container is found: that
// changes nothing in the directory above. The test runs in a mount namespace of its own.
func TestHierarchyMountedLater(t *testing.T) {
	const dir, inside = "/sys/fs/cgroup/pids", "KURI_TEST_MOUNTS"
	if cgroup.Unified() {
		t.Skip("SKIP: cgroup v2 has one hierarchy")
	}
	if os.Getuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	if os.Getenv(inside) == "" {
		cmd := exec.Command("unshare", "--mount", "--propagation", "private", os.Args[0], "-test.run", "^"+t.Name()+"$",
			"-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "SKIP: ") {
			t.Skipf("%s", out)
		}
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	config := &cgroups.Cgroup{Path: "/kuri-test", Resources: &cgroups.Resources{}}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Skipf("SKIP: no hierarchy with the pids controller alone: %v", err)
	}
	var p Paths
	paths, err := p.Of(config)
	if err != nil || paths["memory"] == "" || paths["pids"] != "" {
		t.Fatalf("without the hierarchy: %v, %v", paths, err)
	}
	if err := unix.Mount("cgroup", dir, "cgroup", 0, "pids"); err != nil {
		t.Fatal(err)
	}
	paths, err = p.Of(config)
	if want := dir + "/kuri-test"; err != nil || paths["pids"] != want {
		t.Errorf("with the hierarchy: %v, %v", paths, err)
	}
}

func TestAllowList(t *testing.T) {
	deny := &devices.Rule{Type: devices.WildcardDevice, Major: -1, Minor: -1, Permissions: "rwm"}
	allow := func(kind devices.Type, major, minor int64, p devices.Permissions) *devices.Rule {
		return &devices.Rule{Type: kind, Major: major, Minor: minor, Permissions: p, Allow: true}
	}
	for _, c := range []struct {
		name  string
		rules []*devices.Rule
		want  []string // nil: left to the library
	}{
		{"sorted and merged", []*devices.Rule{deny, allow('c', 5, 2, "rw"), allow('c', -1, -1, "m"), allow('b', 8, 0, "r"),
			allow('c', 5, 2, "rm")},
			[]string{"b 8:0 r", "c *:* m", "c 5:2 rwm"}},
		{"privileged", []*devices.Rule{{Type: devices.WildcardDevice, Major: -1, Minor: -1, Permissions: "rwm", Allow: true}},
			nil},
		{"everything allowed later", []*devices.Rule{deny, allow('a', -1, -1, "rwm")}, nil},
		{"one denied again", []*devices.Rule{deny, allow('c', 1, 3, "rwm"),
			{Type: 'c', Major: 1, Minor: 3, Permissions: "w"}}, nil},
		{"no deny first", []*devices.Rule{allow('c', 1, 3, "rwm"), allow('c', 1, 5, "rwm")}, nil},
	} {
		if list, ok := allowList(c.rules); ok != (c.want != nil) || !slices.Equal(list, c.want) {
			t.Errorf("%s: have %q, %v; want %q", c.name, list, ok, c.want)
		}
	}
}

// A new cgroup gets the limits that the library would set.
func TestLimitDevices(t *testing.T) {
	if cgroup.Unified() {
		t.Skip("SKIP: cgroup v2 has a program for devices")
	}
	if os.Getuid() != 0 {
		t.Skip("SKIP: making a cgroup takes root")
	}
	r := &cgroups.Resources{Devices: []*devices.Rule{
		{Type: devices.WildcardDevice, Major: -1, Minor: -1, Permissions: "rwm"},
		{Type: 'c', Major: 1, Minor: 3, Permissions: "rwm", Allow: true}, {Type: 'c', Major: 136, Minor: -1,
			Permissions: "rw", Allow: true},
		{Type: 'b', Major: -1, Minor: -1, Permissions: "m", Allow: true},
	}}
	var lists []string
	for i, set := range []func(cgroups.Manager) error{
		func(m cgroups.Manager) error { return m.Set(r) },
		func(m cgroups.Manager) error {
			if done, err := allowDevices(m, r); err != nil || !done {
				return fmt.Errorf("devices left to the library: %w", err)
			}
			return Limit(m, r)
		},
	} {
		m := testCgroup(t, fmt.Sprintf("devices-%d", i), r)
		if err := set(m); err != nil {
			t.Fatal(err)
		}
		list, err := cgroups.ReadFile(m.Path("devices"), "devices.list")
		if err != nil {
			t.Fatal(err)
		}
		lists = append(lists, list)
	}
	if lists[0] != lists[1] || lists[0] == "" {
		t.Errorf("the library sets %q, Kuri %q", lists[0], lists[1])
	}
}

// A cgroup that Kuri creates has the directories and the cpuset of one that the library creates,
// also below a new parent.
func TestMakeCgroup(t *testing.T) {
	if cgroup.Unified() {
		t.Skip("SKIP: on cgroup v2 it is the library's")
	}
	if os.Getuid() != 0 {
		t.Skip("SKIP: making a cgroup takes root")
	}
	r := &cgroups.Resources{}
	want := testCgroup(t, "of-library", r)
	cpuset, err := cgroups.ReadFile(want.Path("cpuset"), "cpuset.cpus")
	if err != nil {
		t.Skipf("SKIP: no cpuset here: %v", err)
	}
	for _, name := range []string{"made", "parent/made"} {
		m, err := manager.New(&cgroups.Cgroup{Path: testPath(name), Resources: r})
		if err != nil {
			t.Fatal(err)
		}
		paths := maps.Clone(m.GetPaths()) // Destroy empties the original
		t.Cleanup(func() {
			m.Destroy()
			for _, dir := range paths {
				for up := filepath.Dir(dir); strings.Contains(up, "kuri-test-"); up = filepath.Dir(up) {
					os.Remove(up)
				}
			}
		})
		if err := Make(m, r); err != nil {
			t.Fatal(err)
		}
		for controller := range want.GetPaths() {
			if !cgroups.PathExists(paths[controller]) {
				t.Errorf("%s: no directory for %q", name, controller)
			}
		}
		if have, err := cgroups.ReadFile(paths["cpuset"], "cpuset.cpus"); err != nil || have != cpuset ||
			strings.TrimSpace(have) == "" {
			t.Errorf("%s: cpuset.cpus is %q, %v; want %q", name, have, err, cpuset)
		}
	}
}

func testPath(name string) string { return fmt.Sprintf("/kuri-test-%d/%s", os.Getpid(), name) }

// testCgroup creates a cgroup that is removed after the test.
func testCgroup(t *testing.T, name string, r *cgroups.Resources) cgroups.Manager {
	t.Helper()
	m, err := manager.New(&cgroups.Cgroup{Path: testPath(name), Resources: r})
	if err != nil {
		t.Fatal(err)
	}
	paths := maps.Clone(m.GetPaths()) // Destroy empties the original
	t.Cleanup(func() {
		m.Destroy()
		for _, p := range paths {
			os.Remove(filepath.Dir(p)) // of this test process, if it is empty
		}
	})
	if err := m.Apply(-1); err != nil {
		t.Skipf("SKIP: no cgroup can be made here: %v", err)
	}
	return m
}
