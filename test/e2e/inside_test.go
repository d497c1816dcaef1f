package e2e

//lint:file-ignore SA1019 the string fields for profiles, deprecated, are all that kubelets before 1.24 send

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// Seccomp profiles by file and by the fields of old kubelets, and the default profile with more capabilities.
func TestSeccompProfiles(t *testing.T) {
	s := newShell(t)
	profile := harness.Write(t, t.TempDir(), "nomkdir.json",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`)
	typed := func(typ runtimeapi.SecurityProfile_ProfileType, ref string) func(*container, *security) {
		return func(_ *container, sc *security) {
			sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: typ, LocalhostRef: ref}
		}
	}
	old := func(path string) func(*container, *security) {
		return func(_ *container, sc *security) { sc.SeccompProfilePath = path }
	}
	const look = "grep Seccomp: /proc/self/status | cut -f2; mkdir /d 2>/dev/null && echo made; unshare -u true 2>/dev/null && echo unshared; true"
	for name, c := range map[string]struct {
		change func(*container, *security)
		want   string
	}{
		"nothing asked":  {nil, "0\nmade\n"},
		"localhost":      {typed(runtimeapi.SecurityProfile_Localhost, profile), "2\n"},
		"old localhost":  {old("localhost/" + profile), "2\n"},
		"old default":    {old("runtime/default"), "2\nmade\n"},
		"older default":  {old("docker/default"), "2\nmade\n"},
		"old unconfined": {old("unconfined"), "0\nmade\n"},
		"the typed wins": {func(c *container, sc *security) {
			typed(runtimeapi.SecurityProfile_Unconfined, "")(c, sc)
			old("localhost/"+profile)(c, sc)
		}, "0\nmade\n"},
		"with capability": {func(c *container, sc *security) {
			typed(runtimeapi.SecurityProfile_RuntimeDefault, "")(c, sc)
			sc.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		}, "2\nmade\nunshared\n"},
	} {
		if out := s.says(t, c.change, "sh", "-c", look); out != c.want {
			t.Errorf("%s: %q, want %q", name, out, c.want)
		}
	}
	bad := harness.Write(t, t.TempDir(), "bad.json", `{"defaultAction": 7}`)
	harness.WantError(t, s.refuses(t, typed(runtimeapi.SecurityProfile_Localhost, bad), "true"), codes.InvalidArgument,
		"seccomp", bad)
	harness.WantError(t, s.refuses(t, typed(runtimeapi.SecurityProfile_Localhost, ""), "true"), codes.InvalidArgument,
		"localhost_ref")
	harness.WantError(t, s.refuses(t, old("perhaps"), "true"), codes.InvalidArgument, "seccomp_profile_path", "perhaps")
	harness.WantError(t, s.refuses(t, old("localhost/relative.json"), "true"), codes.InvalidArgument,
		"seccomp_profile_path")
}

// The identity of a container: user and groups under both policies, the status, and unknown names.
func TestIdentity(t *testing.T) {
	s := newShell(t)
	files, err := image.Busybox("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files,
		image.File{Path: "/etc/passwd", Data: []byte("root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n")},
		image.File{Path: "/etc/group", Data: []byte("root:x:0:\nann:x:1000:\nteam:x:2000:ann\n")},
	)
	img, err := image.New(v1.Config{User: "ann"}, files...)
	if err != nil {
		t.Fatal(err)
	}
	ref := s.Registry.Push(t, "ann:1", img)
	s.Pull(t, ref)
	as := func(change func(*security)) func(*container, *security) {
		return func(c *container, sc *security) {
			c.Image.Image = ref
			if change != nil {
				change(sc)
			}
		}
	}
	strict := runtimeapi.SupplementalGroupsPolicy_Strict
	for name, c := range map[string]struct {
		change func(*security)
		want   string // uid gid groups
	}{
		"of the image":        {nil, "1000 1000 1000 2000"},
		"merged":              {func(sc *security) { sc.SupplementalGroups = []int64{5} }, "1000 1000 5 1000 2000"},
		"strict":              {func(sc *security) { sc.SupplementalGroups, sc.SupplementalGroupsPolicy = []int64{5}, strict }, "1000 1000 5 1000"},
		"strict without more": {func(sc *security) { sc.SupplementalGroupsPolicy = strict }, "1000 1000 1000"},
		"by number": {func(sc *security) {
			sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 7}
		}, "1000 7 7 2000"},
	} {
		id := s.run(t, as(c.change), "sh", "-c", "id -u; id -g; grep Groups: /proc/self/status | cut -f2")
		st := s.WaitExit(t, id)
		out := strings.Fields(s.LogText(t, id, "stdout"))
		if len(out) < 3 {
			t.Errorf("%s: %q", name, out)
			continue
		}
		// The kernel sorts the groups, and the primary one may be missing from them.
		has := map[string]bool{out[1]: true}
		for _, g := range out[2:] {
			has[g] = true
		}
		want := strings.Fields(c.want)
		ok := out[0] == want[0] && out[1] == want[1] && len(has) == len(want)-2
		for _, g := range want[2:] {
			ok = ok && has[g]
		}
		if !ok {
			t.Errorf("%s: inside %q, want %q", name, out, c.want)
		}
		u := st.User.GetLinux()
		if got := strings.Trim(fmt.Sprint(u.GetUid(), u.GetGid(), u.GetSupplementalGroups()),
			"[]"); strings.Join(strings.Fields(strings.NewReplacer("[", "", "]", "").Replace(got)), " ") != c.want {
			t.Errorf("%s: the status says %q, want %q", name, got, c.want)
		}
	}
	harness.WantError(t, s.refuses(t, as(func(sc *security) { sc.RunAsUsername = "bob" }), "true"), codes.InvalidArgument,
		"bob", "/etc/passwd")
	nobody, err := image.New(v1.Config{User: "ann:crew"}, files...)
	if err != nil {
		t.Fatal(err)
	}
	crew := s.Registry.Push(t, "crew:1", nobody)
	s.Pull(t, crew)
	harness.WantError(t, s.refuses(t, func(c *container, _ *security) { c.Image.Image = crew }, "true"),
		codes.InvalidArgument, "crew", "/etc/group")
	harness.WantError(t, s.refuses(t, as(func(sc *security) { sc.SupplementalGroupsPolicy = 9 }), "true"),
		codes.InvalidArgument, "supplemental_groups_policy")
}

// A user other than root keeps ambient capabilities through exec.
func TestAmbientCapabilities(t *testing.T) {
	s := newShell(t)
	as := func(c *runtimeapi.Capability) func(*container, *security) {
		return func(_ *container, sc *security) {
			sc.RunAsUser, sc.Capabilities = &runtimeapi.Int64Value{Value: 1000}, c
		}
	}
	mask := func(change func(*container, *security), field string) uint64 {
		out := s.says(t, change, "sh", "-c", "grep "+field+": /proc/self/status | cut -f2")
		n, err := strconv.ParseUint(strings.TrimSpace(out), 16, 64)
		if err != nil {
			t.Errorf("%s is %q", field, out)
		}
		return n
	}
	const bind = 1 << 10
	given := as(&runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}})
	for _, field := range []string{"CapEff", "CapAmb", "CapInh"} {
		if got := mask(given, field); got != bind {
			t.Errorf("%s is %x, want %x", field, got, bind)
		}
	}
	dropped := as(&runtimeapi.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"},
		DropCapabilities: []string{"ALL", "NET_BIND_SERVICE"}})
	if got := mask(dropped, "CapEff"); got != 0 {
		t.Errorf("what is dropped as well is there: %x", got)
	}
}

// A device can be used with exactly the permissions that it was given, and no other device can be used.
func TestDeviceAccess(t *testing.T) {
	s := newShell(t)
	device := func(permissions string) func(*container, *security) {
		return func(c *container, _ *security) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/loop-control", ContainerPath: "/dev/thing",
				Permissions: permissions}}
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("SKIP: no /dev/loop-control to give")
	}
	const look = "stat -c %t:%T /dev/thing; (: </dev/thing) 2>/dev/null && echo read; (: >/dev/thing) 2>/dev/null && echo write; true"
	for permissions, want := range map[string]string{"r": "a:ed\nread\n", "w": "a:ed\nwrite\n",
		"rw": "a:ed\nread\nwrite\n", "": "a:ed\n"} {
		if out := s.says(t, device(permissions), "sh", "-c", look); out != want {
			t.Errorf("%q: %q, want %q", permissions, out, want)
		}
	}
	// A device node that a container creates cannot be opened.
	const forge = "mknod /dev/forged c 10 237 && echo made; (: </dev/forged) 2>/dev/null || echo refused"
	if out := s.says(t, nil, "sh", "-c", forge); out != "made\nrefused\n" {
		t.Errorf("a forged device: %q", out)
	}
	harness.WantError(t, s.refuses(t, device("x"), "true"), codes.InvalidArgument, "devices", "x")
	harness.WantError(t, s.refuses(t, func(c *container, _ *security) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/etc/passwd", ContainerPath: "/dev/x", Permissions: "r"}}
	}, "true"), codes.InvalidArgument, "devices[0]", "/etc/passwd")
}

// A debug container shares the processes of another container of its pod.
func TestTargetProcesses(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1234")
	target := func(id string) func(*container, *security) {
		return func(_ *container, sc *security) {
			sc.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: id}
		}
	}
	if out := s.says(t, target(id), "sh", "-c",
		"cat /proc/1/comm; ps -o args | grep -c '[s]leep 1234'; hostname"); out != "sleep\n1\nshell\n" {
		t.Errorf("%q", out)
	}
	// Its exit does not end the target.
	if st := s.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the target is %v", st.State)
	}
	_, other := s.RunAlone(t, "other", s.image, "sleep", "1000")
	exited := s.run(t, nil, "true")
	s.WaitExit(t, exited)
	harness.WantError(t, s.refuses(t, target(""), "true"), codes.NotFound, "target_id")
	harness.WantError(t, s.refuses(t, target(other), "true"), codes.InvalidArgument, "target_id", "another pod")
	harness.WantError(t, s.refuses(t, target(exited), "true"), codes.FailedPrecondition, "target_id", "exited")
	harness.WantError(t, s.refuses(t, target(strings.Repeat("0", 64)), "true"), codes.NotFound, "target_id")
	harness.WantError(t, s.refuses(t, func(_ *container, sc *security) { sc.NamespaceOptions.TargetId = id }, "true"),
		codes.InvalidArgument, "target_id")
}

// Limits are set at create, or refused by name if the node does not support them.
func TestResourcesAtCreate(t *testing.T) {
	s := newShell(t)
	const mb = 1 << 20
	with := func(r *resources) func(*container, *security) {
		return func(c *container, _ *security) { c.Linux.Resources = r }
	}
	id := s.run(t, with(&resources{CpusetCpus: "0", CpusetMems: "0", MemoryLimitInBytes: 64 * mb}), "sleep", "1000")
	if out := s.Output(t, id, "grep", "Cpus_allowed_list",
		"/proc/1/status"); strings.TrimSpace(out) != "Cpus_allowed_list:\t0" {
		t.Errorf("cpuset: %q", out)
	}
	_, noSwapFile := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
	_, v2 := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	swap := with(&resources{MemoryLimitInBytes: 64 * mb, MemorySwapLimitInBytes: 96 * mb})
	switch {
	case noSwapFile == nil:
		if got := limit(t, id, "memory.memsw.limit_in_bytes", ""); got != fmt.Sprint(64*mb) {
			t.Errorf("a limit of memory alone: memory and swap %s", got)
		}
		if got := limit(t, s.run(t, swap, "sleep", "1000"), "memory.memsw.limit_in_bytes", ""); got != fmt.Sprint(96*mb) {
			t.Errorf("memory and swap: %s", got)
		}
	case v2 == nil:
		if got := limit(t, s.run(t, swap, "sleep", "1000"), "memory.limit_in_bytes",
			"memory.swap.max"); got != fmt.Sprint(32*mb) {
			t.Errorf("swap alone: %s", got)
		}
	default:
		harness.WantError(t, s.refuses(t, swap, "true"), codes.Unimplemented, "memory_swap_limit_in_bytes")
	}
	high := with(&resources{MemoryLimitInBytes: 64 * mb, Unified: map[string]string{"memory.high": fmt.Sprint(48 * mb)}})
	if v2 == nil {
		if got := limit(t, s.run(t, high, "sleep", "1000"), "memory.x", "memory.high"); got != fmt.Sprint(48*mb) {
			t.Errorf("memory.high: %s", got)
		}
		harness.WantError(t, s.refuses(t, with(&resources{Unified: map[string]string{"no.such": "1"}}), "true"),
			codes.FailedPrecondition, "no.such")
	} else {
		harness.WantError(t, s.refuses(t, high, "true"), codes.Unimplemented, "unified")
	}
	huge := with(&resources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 * mb}}})
	_, v1 := os.Stat("/sys/fs/cgroup/hugetlb")
	controllers, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if v1 == nil || strings.Contains(string(controllers), "hugetlb") {
		if got := limit(t, s.run(t, huge, "sleep", "1000"), "hugetlb.2MB.limit_in_bytes",
			"hugetlb.2MB.max"); got != fmt.Sprint(4*mb) {
			t.Errorf("huge pages: %s", got)
		}
	} else {
		s.run(t, huge, "sleep", "1000") // no limit can be meant here
	}
	harness.WantError(t, s.refuses(t, with(&resources{CpusetCpus: "zero"}), "true"), codes.InvalidArgument, "cpuset_cpus")
	harness.WantError(t, s.refuses(t, with(&resources{CpusetCpus: "4000"}), "true"), codes.InvalidArgument,
		"start container", "the kernel refuses a limit", "cpuset")
}
