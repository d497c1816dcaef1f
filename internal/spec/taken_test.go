package spec

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A mount of cgroup2 in the node's cgroup namespace sets the options of the node's own mount.
func TestCgroupMountKeepsTheNodesOptions(t *testing.T) {
	for _, c := range []struct {
		node       string
		privileged bool
		want       string
	}{
		{"v2", true, "nosuid noexec nodev relatime rw nsdelegate memory_recursiveprot"},
		{"v2", false, "nosuid noexec nodev relatime ro"},
		{"v1", true, "nosuid noexec nodev relatime rw"},
	} {
		in := testCase{Node: c.node, Image: imagespec.ImageConfig{Cmd: []string{"sh"}}}.input(t)
		in.Node.CgroupOptions = []string{"nsdelegate", "memory_recursiveprot"}
		in.Container.Metadata = &runtime.ContainerMetadata{Name: "c"}
		in.Container.Linux = &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{Privileged: c.privileged}}
		in.Pod.Linux = &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{Privileged: c.privileged}}
		s, _, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range s.Mounts {
			if got := strings.Join(m.Options, " "); m.Destination == "/sys/fs/cgroup" && got != c.want {
				t.Errorf("%s, privileged %v: %s, want %s", c.node, c.privileged, got, c.want)
			}
		}
	}
}

// Invalid settings of an image, and requests that no kernel can honour, are left out and noted.
func TestInvalidSettingsAreIgnoredWithANote(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Input)
		note   string
		look   func(*specs.Spec) string
		want   string
	}{
		{"environment", func(in *Input) {
			in.Image.Env = []string{"A=1", "NOEQ", "", "=x", "A=2", "B=\x00", "_KURI_RAW_1=00", "C="}
		}, `"NOEQ" "" "=x" "B=\x00" "_KURI_RAW_1=00"`,
			func(s *specs.Spec) string { return strings.Join(s.Process.Env[2:], " ") }, "A=2 C="},
		{"nameless variables", func(in *Input) {
			for _, key := range []string{"", "A", "=", "=x"} {
				in.Container.Envs = append(in.Container.Envs, &runtime.KeyValue{Key: key, Value: []byte("v")})
			}
			in.Container.Envs = append(in.Container.Envs, nil)
		}, "4 environment variables", func(s *specs.Spec) string { return strings.Join(s.Process.Env[2:], " ") }, "A=v"},
		{"relative path of a device", func(in *Input) {
			in.Devices = []ResolvedDevice{{Path: "dev/../x", Source: "/dev/a", Type: "c", Permissions: "r"}}
		}, "/x", func(s *specs.Spec) string { return s.Linux.Devices[0].Path }, "/x"},
		{"working directory", func(in *Input) { in.Image.WorkingDir = "a/../b" }, "relative",
			func(s *specs.Spec) string { return s.Process.Cwd }, "/b"},
		{"mount", withMount(&runtime.Mount{HostPath: "/h", ContainerPath: "a/b"}), "/a/b",
			func(s *specs.Spec) string { return s.Mounts[len(s.Mounts)-1].Destination }, "/a/b"},
		{"stop signal", func(in *Input) { in.Image.StopSignal = "SIGNOT" }, `"SIGNOT"`, nil, ""},
		{"windows", func(in *Input) { in.Container.Windows = &runtime.WindowsContainerConfig{} }, "windows", nil, ""},
		{"capability", withCapabilities(&runtime.Capability{AddCapabilities: []string{"NOT_ONE", "NET_ADMIN"},
			DropCapabilities: []string{"ALL"}}), `"NOT_ONE"`,
			func(s *specs.Spec) string { return strings.Join(s.Process.Capabilities.Bounding, " ") }, "CAP_NET_ADMIN"},
		{"ambient capability", withCapabilities(&runtime.Capability{AddAmbientCapabilities: []string{"CAP_NOT_ONE",
			"CHOWN"}}), `"CAP_NOT_ONE"`,
			func(s *specs.Spec) string { return strings.Join(s.Process.Capabilities.Ambient, " ") }, "CAP_CHOWN"},
		{"device permissions", func(in *Input) {
			in.Devices = []ResolvedDevice{{Path: "/dev/a", Source: "/dev/a", Type: "c", Major: 1, Minor: 2}}
			// the rule that forbids all
		}, "/dev/a", func(s *specs.Spec) string {
			return fmt.Sprint(len(s.Linux.Devices),
				len(s.Linux.Resources.Devices))
		}, "1 1"},
		{"huge pages", func(in *Input) {
			in.Node.HugepageSizes = nil
			withResources(&runtime.LinuxContainerResources{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB",
				Limit: 1}}})(in)
		}, "2MB", func(s *specs.Spec) string { return fmt.Sprint(len(s.Linux.Resources.HugepageLimits)) }, "0"},
		{"swap", func(in *Input) {
			in.Node.Swap = false
			withResources(&runtime.LinuxContainerResources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 10})(in)
		}, "swapaccount=1", func(s *specs.Spec) string {
			return fmt.Sprint(*s.Linux.Resources.Memory.Limit, s.Linux.Resources.Memory.Swap)
		}, "9 <nil>"},
		{"selinux", func(in *Input) {
			in.Container.Linux.SecurityContext.SelinuxOptions = &runtime.SELinuxOption{Type: "a b"}
		}, "selinux_options", func(s *specs.Spec) string { return s.Process.SelinuxLabel }, ""},
	} {
		in := testCase{}.input(t)
		in.Image.Cmd = []string{"sh"}
		in.Container.Metadata = &runtime.ContainerMetadata{Name: "c"}
		in.Container.Linux = &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{}}
		c.change(&in)
		s, notes, err := Container(in)
		if err != nil || len(notes) != 1 || !strings.Contains(notes[0], c.note) {
			t.Errorf("%s: %q, %v; want one note with %s", c.name, notes, err, c.note)
			continue
		}
		if c.look == nil {
			continue
		}
		if got := c.look(s); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// What no program can be started with is for the OCI runtime to report: a container's start fails
// then, and not its creation.
func TestProcessesThatCannotStartAreTranslated(t *testing.T) {
	for name, c := range map[string]*runtime.ContainerConfig{
		"nameless program":           {Command: []string{"", "a"}},
		"NUL in an argument":         {Command: []string{"a"}, Args: []string{"b\x00"}},
		"relative working directory": {Command: []string{"a"}, WorkingDir: "x/../y"},
		"NUL in a directory":         {Command: []string{"a"}, WorkingDir: "/x\x00"},
		"NUL in a variable": {Command: []string{"a"},
			Envs: []*runtime.KeyValue{{Key: "A", Value: []byte("b\x00")}}},
	} {
		in := testCase{}.input(t)
		c.Metadata = &runtime.ContainerMetadata{Name: "c"}
		in.Container = c
		s, notes, err := Container(in)
		if err != nil || len(notes) > 0 {
			t.Errorf("%s: %q, %v", name, notes, err)
			continue
		}
		p := s.Process
		if args := slices.Concat(c.Command, c.Args); !slices.Equal(p.Args, args) {
			t.Errorf("%s: arguments %q", name, p.Args)
		}
		if c.WorkingDir != "" && p.Cwd != c.WorkingDir {
			t.Errorf("%s: working directory %q", name, p.Cwd)
		}
		if c.Envs != nil && !slices.Contains(p.Env, "A=b\x00") {
			t.Errorf("%s: environment %q", name, p.Env)
		}
	}
}

// A kubelet sends two empty lists for procMount Unmasked, which is limited to pods with a user
// namespace. A list that is not empty is used unchanged.
func TestEmptyListsOfPaths(t *testing.T) {
	for _, c := range []struct {
		userns           bool
		masked, readonly []string
		hidden, fixed    int
	}{
		{false, nil, nil, 12, 5},
		{true, nil, nil, 0, 0},
		{true, []string{"/a"}, []string{"/b", "/c"}, 1, 2},
		{true, []string{"/a"}, nil, 1, 5},
		{false, nil, []string{"/b"}, 12, 1},
	} {
		in := testCase{Image: imagespec.ImageConfig{Cmd: []string{"sh"}}}.input(t)
		in.Container.Metadata = &runtime.ContainerMetadata{Name: "c"}
		in.Container.Linux = &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{MaskedPaths: c.masked, ReadonlyPaths: c.readonly}}
		if c.userns {
			userNamespace(&in, 65536)
		}
		s, _, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Linux.MaskedPaths) != c.hidden || len(s.Linux.ReadonlyPaths) != c.fixed {
			t.Errorf("%+v: %q, %q", c, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths)
		}
	}
}

// A VOLUME is a separate mount only if the root filesystem is read-only.
func TestVolumesBelowAReadOnlyRoot(t *testing.T) {
	for readonly, want := range map[bool]string{false: "", true: "/srv/data</run/kuri/mounts/b/rootfs/srv/data"} {
		in := testCase{Image: imagespec.ImageConfig{Cmd: []string{"sh"}}}.input(t)
		in.Volumes = []string{"/srv/data"}
		in.Container.Metadata = &runtime.ContainerMetadata{Name: "c"}
		in.Container.Linux = &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{ReadonlyRootfs: readonly}}
		// a symbolic link of the image into the volume
		in.Container.Mounts = []*runtime.Mount{{HostPath: "/h", ContainerPath: "/link"}}
		in.Mounts = []ResolvedMount{{Source: "/h"}}
		s, _, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		got, before := "", true
		for _, m := range s.Mounts {
			if m.Destination == "/link" {
				before = false
			}
			if m.Destination == "/srv/data" {
				got = m.Destination + "<" + m.Source
				if !before {
					t.Error("the volume hides what is mounted in it")
				}
			}
		}
		if got != want {
			t.Errorf("read-only %v: %q, want %q", readonly, got, want)
		}
	}
}

// If a container mounts the node's /dev, its terminal is mounted over the node's console, and
// access is granted to that device alone.
func TestConsoleOfTheNode(t *testing.T) {
	for _, c := range []struct {
		tty    bool
		source string
		want   bool
	}{{true, "/dev", true}, {false, "/dev", false}, {true, "/srv/dev", false}} {
		in := testCase{Image: imagespec.ImageConfig{Cmd: []string{"sh"}}}.input(t)
		in.Container.Metadata, in.Container.Tty = &runtime.ContainerMetadata{Name: "c"}, c.tty
		withMount(&runtime.Mount{HostPath: c.source, ContainerPath: "/dev"})(&in)
		in.Mounts[0].Source = c.source
		s, _, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, r := range s.Linux.Resources.Devices {
			found = found || r.Allow && r.Type == "c" && *r.Major == 5 && *r.Minor == 1
		}
		if found != c.want {
			t.Errorf("%+v: the console may be opened: %v", c, found)
		}
	}
}

// Notes quote the image's settings, but with a bounded length.
func TestNotesAreBounded(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	in := testCase{Image: imagespec.ImageConfig{Cmd: []string{"sh"}, Env: slices.Repeat([]string{long}, 20),
		StopSignal: long, WorkingDir: long}}.input(t)
	in.Container.Metadata = &runtime.ContainerMetadata{Name: "c"}
	_, notes, err := Container(in)
	if err != nil || len(notes) != 3 {
		t.Fatalf("%d notes, %v", len(notes), err)
	}
	for _, n := range notes {
		if len(n) > 1000 {
			t.Errorf("a note of %d bytes: %.100s…", len(n), n)
		}
	}
	if got := some([]string{"a", "b"}); got != `"a" "b"` {
		t.Errorf("%s", got)
	}
}

func withCapabilities(c *runtime.Capability) func(*Input) {
	return func(in *Input) { in.Container.Linux.SecurityContext.Capabilities = c }
}
