package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "inside" {
		if err := Inside(os.Args[2], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: not root")
	}
}

func of(t *testing.T, results []Result, name string) Result {
	t.Helper()
	i := slices.IndexFunc(results, func(r Result) bool { return r.Name == name })
	if i < 0 {
		t.Fatalf("there is no check %q", name)
	}
	return results[i]
}

// child returns the command line of this program as the child, optionally through another program.
func child(by ...string) []string { return append(by, os.Args[0], "inside") }

// Every check on this machine has complete texts and leaves nothing behind.
func TestRunOnThisMachine(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	results := Run(t.Context(), Options{Root: filepath.Join(root, "lib", "kuri"), State: root, Child: child()})
	seen := map[string]bool{}
	for _, r := range results {
		t.Logf("%-8s %s, %s: %s", r.State, r.Group, r.Name, r.Detail)
		switch {
		case seen[r.Group+r.Name]:
			t.Errorf("%s, %s is there twice", r.Group, r.Name)
		case r.Detail == "" || !slices.Contains([]State{OK, Limited, Missing, Unknown}, r.State):
			t.Errorf("%+v", r)
		case (r.State == Limited || r.State == Missing) != (r.Fails != "" && r.Mend != ""):
			t.Errorf("what fails and how it is mended belongs to what is not ok: %+v", r)
		}
		seen[r.Group+r.Name] = true
	}
	// The tests of Kuri require these.
	for _, name := range []string{"namespaces", "pidfd", "openat2", "overlayfs", "mounts", "delegation", "seccomp",
		"bridge", "nftables", "privileges"} {
		if r := of(t, results, name); r.State != OK {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(root, ".kuri-check-*")); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/kuri-check-*"); len(left) > 0 {
		t.Errorf("left: %s", left)
	}
}

// A missing privilege is detected from the kernel's error.
func TestWithoutACapability(t *testing.T) {
	needRoot(t)
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("SKIP: no setpriv(1)")
	}
	results := Run(t.Context(), Options{Root: t.TempDir(), Child: child(setpriv, "--bounding-set=-net_admin")})
	for name, want := range map[string]State{"bridge": Missing, "nftables": Missing, "overlayfs": OK, "seccomp": OK} {
		if r := of(t, results, name); r.State != want {
			t.Errorf("%s: %+v, want %s", name, r, want)
		}
	}
}

// overlayfs refuses an upper directory on another overlay with whiteouts.
func TestRootOnAFilesystemThatOverlayfsRefuses(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(dir, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0,
		fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", dir)); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(merged, unix.MNT_DETACH)
	results := Run(t.Context(), Options{Root: filepath.Join(merged, "kuri"), Child: child()})
	if r := of(t, results, "overlayfs"); r.State != Missing || !strings.Contains(r.Detail, "mount an overlay") {
		t.Errorf("%+v", r)
	}
}

// A system call hidden by a seccomp filter, as Docker's profile does with unknown calls, counts as
// missing.
func TestHiddenSystemCalls(t *testing.T) {
	for name, hidden := range map[string]struct {
		call  uint32
		probe func() error
	}{
		"clone3": {unix.SYS_CLONE3, Clone3}, "openat2": {unix.SYS_OPENAT2, Openat2},
		"mount_setattr": {unix.SYS_MOUNT_SETATTR, MountSetattr}, "pidfd_open": {unix.SYS_PIDFD_OPEN, pidfdOpen},
	} {
		if err := hidden.probe(); err != nil {
			t.Logf("%s: not supported by this kernel: %v", name, err)
		}
		result := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread has a filter
			if err := hide(hidden.call); err != nil {
				t.Error(err)
			}
			result <- hidden.probe()
		}()
		if err := <-result; !errors.Is(err, unix.ENOSYS) {
			t.Errorf("%s: %v, want ENOSYS", name, err)
		}
	}
}

func hide(call uint32) error {
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0,
		uintptr(unsafe.Pointer(&f))); errno != 0 {
		return errno
	}
	return nil
}

// fake returns a machine with these files.
func fake(t *testing.T, files map[string]string) *machine {
	t.Helper()
	sys := t.TempDir()
	for name, body := range files {
		at := filepath.Join(sys, name)
		mode := os.FileMode(0o644)
		if strings.HasPrefix(name, "/opt/cni/bin/") {
			mode = 0o755
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(body), mode)); err != nil {
			t.Fatal(err)
		}
	}
	return newMachine(t.Context(), Options{sys: sys})
}

const v2 = "/sys/fs/cgroup/cgroup.controllers"

func TestReadings(t *testing.T) {
	conflist := `{"name": "pods", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}`
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  State
		says  string
	}{
		{"version", map[string]string{v2: ""}, OK, "v2"},
		{"version", map[string]string{"/sys/fs/cgroup/cpu/cgroup.procs": "", "/sys/fs/cgroup/unified/cgroup.procs": ""},
			Limited, "v1 (hybrid)"},
		{"version", nil, Missing, "no cgroups"},
		{"controllers", map[string]string{v2: "cpuset cpu io memory hugetlb pids rdma\n"}, OK, ""},
		{"controllers", map[string]string{v2: "cpuset cpu io pids\n"}, Missing, "there is no memory"},
		{"controllers", map[string]string{v2: "cpuset cpu memory pids\n"}, Limited, "no io, hugetlb"},
		{"controllers", map[string]string{"/sys/fs/cgroup/cpu/cgroup.procs": ""}, Missing, "cpuset, memory, pids"},
		{"swap accounting", map[string]string{"/proc/swaps": "Filename Type\n"}, OK, "no swap"},
		{"swap accounting", map[string]string{"/proc/swaps": "Filename Type\n/dev/sda2 partition\n", v2: "memory"},
			Limited, "does not count"},
		{"swap accounting", map[string]string{"/proc/swaps": "Filename Type\n/dev/sda2 partition\n", v2: "",
			"/sys/fs/cgroup/x/memory.swap.max": "max"}, OK, "counted"},
		{"pressure", map[string]string{v2: "", "/proc/pressure/cpu": ""}, OK, ""},
		{"pressure", map[string]string{v2: ""}, Limited, "no such file"},
		{"AppArmor", nil, OK, "not used"},
		{"AppArmor", map[string]string{"/sys/module/apparmor/parameters/enabled": "Y\n"}, Limited, "cannot be read"},
		{"AppArmor", map[string]string{"/sys/module/apparmor/parameters/enabled": "Y\n",
			"/sys/kernel/security/apparmor/profiles": ""}, Limited, "no apparmor_parser"},
		{"AppArmor", map[string]string{"/sys/module/apparmor/parameters/enabled": "Y\n",
			"/sys/kernel/security/apparmor/profiles": "", "/sbin/apparmor_parser": ""}, OK, "enabled"},
		{"SELinux", map[string]string{"/sys/fs/selinux/enforce": "1"}, OK, "enforcing"},
		{"ip_forward", map[string]string{"/proc/sys/net/ipv4/ip_forward": "0\n"}, Limited, "off"},
		{"ip_forward", map[string]string{"/proc/sys/net/ipv4/ip_forward": "1\n"}, OK, "on"},
		{"br_netfilter", nil, OK, "does not need it"},
		{"br_netfilter", map[string]string{"/etc/cni/net.d/1.conflist": conflist}, Limited, "off"},
		{"IPv6", map[string]string{"/proc/net/if_inet6": "", "/proc/sys/net/ipv6/conf/all/disable_ipv6": "1"},
			Limited, "off"},
		{"CNI", nil, OK, "not configured"},
		{"CNI", map[string]string{"/etc/cni/net.d/1.conflist": conflist, "/opt/cni/bin/bridge": ""}, Missing,
			"needs portmap"},
		{"CNI", map[string]string{"/etc/cni/net.d/1.conflist": conflist, "/opt/cni/bin/bridge": "",
			"/opt/cni/bin/portmap": ""}, OK, "(pods), with bridge, portmap"},
		{"CNI", map[string]string{"/etc/cni/net.d/1.conf": "{"}, Missing, "1.conf"},
		{"CNI", map[string]string{"/etc/cni/net.d/1.conf": "{}"}, Missing, "no plugins"},
		{"connection tracking", map[string]string{"/proc/sys/net/netfilter/nf_conntrack_max": "100",
			"/proc/sys/net/netfilter/nf_conntrack_count": "90"}, Limited, "90 of 100"},
		{"inotify instances", map[string]string{"/proc/sys/fs/inotify/max_user_instances": "128\n"}, Limited, "128"},
		{"inotify watches", map[string]string{"/proc/sys/fs/inotify/max_user_watches": "524288\n"}, OK, "524288"},
		{"processes", nil, Unknown, "pid_max"},
		{"keyrings", map[string]string{"/proc/sys/kernel/keys/maxkeys": "2"}, Limited, "2, and 200"},
		{"swap", map[string]string{"/proc/swaps": "Filename Type\n/dev/sda2 partition\n"}, Limited, "1 swap area"},
		{"swap", map[string]string{"/proc/swaps": "Filename\n/dev/sda2\n",
			"/var/lib/kubelet/config.yaml": "failSwapOn: false\n"}, OK, "failSwapOn"},
		{"kubelet", nil, OK, "not configured"},
		{"kubelet", map[string]string{"/var/lib/kubelet/config.yaml": "containerRuntimeEndpoint: " +
			"unix:///run/kuri/kuri.sock\n"}, OK, "kuri.sock"},
		{"kubelet", map[string]string{"/var/lib/kubelet/config.yaml": "containerRuntimeEndpoint: " +
			"unix:///run/crio/crio.sock\n"}, Limited, "crio.sock"},
		{"kubelet", map[string]string{"/var/lib/kubelet/config.yaml": "a: b\n",
			"/var/lib/kubelet/kubeadm-flags.env": `X="--container-runtime-endpoint=unix:///run/x.sock --y"`}, Limited,
			"unix:///run/x.sock"},
		{"other runtimes", map[string]string{"/run/containerd/containerd.sock": "not a socket"}, OK, "none"},
	} {
		m := fake(t, tt.files)
		for _, rows := range [][]row{cgroupRows, securityRows, networkRows, limitRows, nodeRows} {
			for _, r := range rows {
				if r.name != tt.name {
					continue
				}
				if got := m.check(r); got.State != tt.want || !strings.Contains(got.Detail, tt.says) {
					t.Errorf("%s with %v: %+v, want %s and %q", tt.name, tt.files, got, tt.want, tt.says)
				}
			}
		}
	}
}

func TestOtherRuntimesAreThoseThatAnswer(t *testing.T) {
	m := fake(t, map[string]string{"/run/crio/x": ""})
	l, err := net.Listen("unix", m.path("/run/crio/crio.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if r := m.otherRuntimes(); r.State != Limited || r.Detail != "CRI-O at /run/crio/crio.sock" {
		t.Errorf("%+v", r)
	}
	m.RuntimeSocket = "/run/crio/crio.sock"
	if r := m.otherRuntimes(); r.State != OK {
		t.Errorf("the runtime itself: %+v", r)
	}
}

func TestPrivateStateDirectory(t *testing.T) {
	m := fake(t, map[string]string{"/run/kuri/x": ""})
	for _, dir := range []string{"/", "/run", "/run/kuri"} {
		if err := os.Chmod(m.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if r := m.passable(); r.State != OK {
		t.Errorf("%+v", r)
	}
	if err := os.Chmod(m.path("/run"), 0o700); err != nil {
		t.Fatal(err)
	}
	if r := m.passable(); r.State != Limited || !strings.Contains(r.Detail, "/run, of mode 0700") {
		t.Errorf("%+v", r)
	}
}

func TestJudgements(t *testing.T) {
	const gib = 1 << 30
	for i, tt := range []struct {
		got  Result
		want State
	}{
		{judgeKernel("6.18.44-x"), OK}, {judgeKernel("5.10.0"), Limited}, {judgeKernel("5.4.1"), Missing},
		{judgeKernel("4.19"), Missing}, {judgeKernel("x"), Unknown},
		{judgeSpace("/", "ext4", false, 50*gib, 100*gib, 10*gib, gib), OK},
		{judgeSpace("/", "ext4", false, 5*gib, 100*gib, 10*gib, gib), Limited},
		{judgeSpace("/", "ext4", false, 50*gib, 1000*gib, 10*gib, gib), Limited},
		{judgeSpace("/", "ext4", false, 1, 100*gib, 10*gib, gib), Missing},
		{judgeSpace("/", "ext4", true, 50*gib, 100*gib, 10*gib, gib), Missing},
		{judgeInodes("/", 1e6, 2e6), OK}, {judgeInodes("/", 0, 0), OK}, {judgeInodes("/", 50_000, 2e6), Limited},
		{judgeInodes("/", 9, 2e6), Missing},
		{judgeClock(built.Add(time.Hour), true), OK}, {judgeClock(built.Add(time.Hour), false), Limited},
		{judgeClock(time.Unix(0, 0), true), Missing},
		{judgeFiles(1 << 20), OK}, {judgeFiles(20000), Limited}, {judgeFiles(1024), Missing},
	} {
		if tt.got.State != tt.want {
			t.Errorf("%d: %+v, want %s", i, tt.got, tt.want)
		}
	}
}

// A child that is killed for its time says nothing about the kernel.
func TestSlowChildIsUnknown(t *testing.T) {
	needRoot(t)
	m := &machine{Options: Options{Root: t.TempDir(), Child: []string{"sh", "-c", "exec sleep 60", "child"}}, root: true}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	m.inside, m.insideErr = m.runInside(ctx)
	for _, name := range []string{"namespaces", "overlay"} {
		if r := m.fromInside(name, "", missing); r.State != Unknown || !strings.Contains(r.Detail, "busy") {
			t.Errorf("%s is %v: %s", name, r.State, r.Detail)
		}
	}
}
