package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// The defaults of a container are those of docs/defaults.md, as seen from inside by its first
// process and by an exec.
func TestDefaults(t *testing.T) {
	s := newShell(t)
	id := s.asleep(t, nil)
	look := func(t *testing.T, command, want string) {
		t.Helper()
		if got := s.Output(t, id, "sh", "-c", command); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}

	t.Run("environment", func(t *testing.T) {
		want := "HOME=/root\nHOSTNAME=shell\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
		look(t, "tr '\\0' '\\n' </proc/1/environ | sort", want)
		if got := lines(s.Output(t, id, "env")); got != want {
			t.Errorf("of an exec: %q", got)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		tty := s.asleep(t, func(c *container, _ *security) { c.Tty = true })
		if got := s.Output(t, tty, "sh", "-c",
			"tr '\\0' '\\n' </proc/1/environ | grep TERM; readlink /proc/1/fd/0; stat -c %t:%T /dev/console"); got != "TERM=xterm\n/dev/console\n88:0\n" && !strings.HasPrefix(got, "TERM=xterm\n/dev/") {
			t.Errorf("%q", got)
		}
	})
	t.Run("user", func(t *testing.T) {
		look(t, "grep -E '^(Uid|Gid|Groups):' /proc/1/status", "Uid:\t0\t0\t0\t0\nGid:\t0\t0\t0\t0\nGroups:\t0 \n")
		look(t, "id -u; id -g; id -G", "0\n0\n0\n")
	})
	t.Run("working directory", func(t *testing.T) { look(t, "readlink /proc/1/cwd; pwd", "/\n/\n") })
	t.Run("umask", func(t *testing.T) {
		look(t, "grep Umask /proc/1/status; umask", "Umask:\t0022\n0022\n")
	})
	t.Run("streams", func(t *testing.T) {
		look(t, "readlink /proc/1/fd/0; ls /proc/1/fd | tr '\\n' ' '; stat -Lc %F /proc/1/fd/1", "/dev/null\n0 1 2 fifo\n")
	})
	t.Run("capabilities", func(t *testing.T) {
		const usual = "00000000a80425fb" // the fourteen capabilities of Docker
		const want = "CapInh:\t0000000000000000\nCapPrm:\t" + usual + "\nCapEff:\t" + usual + "\nCapBnd:\t" + usual +
			"\nCapAmb:\t0000000000000000\n"
		look(t, "grep ^Cap /proc/1/status", want)
		look(t, "grep ^Cap /proc/self/status", want)
		user := func(_ *container, sc *security) { sc.RunAsUser = &runtimeapi.Int64Value{Value: 1000} }
		if got := s.says(t, user, "grep", "-E", "^Cap(Eff|Amb)",
			"/proc/self/status"); got != "CapEff:\t0000000000000000\nCapAmb:\t0000000000000000\n" {
			t.Errorf("of a user that is not root: %q", got)
		}
	})
	t.Run("new privileges and seccomp", func(t *testing.T) {
		look(t, "grep -E '^(NoNewPrivs|Seccomp):' /proc/1/status", "NoNewPrivs:\t0\nSeccomp:\t0\n")
	})
	t.Run("oom_score_adj", func(t *testing.T) { look(t, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj", "0\n0\n") })
	t.Run("keyring", func(t *testing.T) {
		// Whoever possesses a session keyring finds its keys. Here only the node's root finds one,
		// by its name.
		node, err := os.ReadFile("/proc/keys")
		if err != nil {
			t.Skip("SKIP: this kernel tells nothing of its keys")
		}
		if !strings.Contains(string(node), "_ses."+id) {
			t.Errorf("there is no session keyring of the container:\n%s", node)
		}
	})
	t.Run("mounts", func(t *testing.T) {
		_, v2 := os.Stat("/sys/fs/cgroup/cgroup.controllers")
		cgroup := struct{ at, kind, options string }{"/sys/fs/cgroup", "cgroup2", "ro,nosuid,nodev,noexec,relatime"}
		if v2 != nil {
			cgroup.at, cgroup.kind = "/sys/fs/cgroup/memory", "cgroup" // one mount for each hierarchy
		}
		for _, m := range []struct{ at, kind, options string }{
			{"/proc", "proc", "rw,nosuid,nodev,noexec,relatime"},
			{"/dev", "tmpfs", "rw,nosuid"},
			{"/dev/pts", "devpts", "rw,nosuid,noexec,relatime"},
			{"/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec,relatime"},
			{"/dev/shm", "tmpfs", "rw,nosuid,nodev,noexec,relatime"},
			{"/sys", "sysfs", "ro,nosuid,nodev,noexec,relatime"},
			cgroup,
		} {
			got := strings.Fields(s.Output(t, id, "sh", "-c", "grep ' "+m.at+" ' /proc/mounts | tail -n 1"))
			if len(got) < 4 || got[2] != m.kind || !hasOptions(got[3], m.options) {
				t.Errorf("%s is %q, want %s with %s", m.at, got, m.kind, m.options)
			}
		}
		look(t, "stat -c %a /dev /dev/shm; touch /file && mount | grep -c ' on / type overlay (rw'", "755\n1777\n1\n")
		look(t, "grep -c ' /run ' /proc/mounts || true", "0\n")
	})
	t.Run("shm", func(t *testing.T) { look(t, "df -k /dev/shm | awk 'NR==2 {print $2}'", "65536\n") })
	t.Run("masked paths", func(t *testing.T) {
		const hidden = `for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts /proc/latency_stats /proc/sched_debug; do [ ! -e $f ] || [ -z "$(head -c 1 $f | tr -d '\0')" ] || echo $f; done
			for d in /proc/acpi /proc/asound /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do [ ! -e $d ] || [ -z "$(ls -A $d)" ] || echo $d; done`
		look(t, hidden, "")
		look(t, "for f in /proc/sys/kernel/domainname /proc/sysrq-trigger /proc/irq/default_smp_affinity; do [ -e $f ] && (: > $f) 2>/dev/null && echo $f; done; true", "")
	})
	t.Run("devices", func(t *testing.T) {
		look(t, "cd /dev; for d in *; do [ -c $d ] && [ ! -L $d ] && stat -c '%n %t:%T %a' $d; done; for l in *; do [ -L $l ] && [ $l != core ] && echo $l $(readlink $l); done; true",
			"full 1:7 666\nnull 1:3 666\nrandom 1:8 666\ntty 5:0 666\nurandom 1:9 666\nzero 1:5 666\n"+
				"fd /proc/self/fd\nptmx pts/ptmx\nstderr /proc/self/fd/2\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\n")
		look(t, "mknod /loop b 7 0 && mknod /kmsg c 1 11 && mknod /full c 1 7 && for d in /loop /kmsg; do (: <$d) 2>/dev/null && echo $d can be opened; done; (head -c 1 /full | wc -c)", "1\n")
	})
	t.Run("files in etc", func(t *testing.T) {
		look(t, "cat /etc/hostname; hostname", "shell\nshell\n")
		look(t, "for f in hostname hosts resolv.conf; do stat -c '%a %u:%g' /etc/$f; echo '# mine' >> /etc/$f || echo read-only; done", strings.Repeat("644 0:0\n", 3))
		if hosts := s.Output(t, id, "cat", "/etc/hosts"); !strings.HasPrefix(hosts, "127.0.0.1\tlocalhost\n") ||
			!strings.Contains(hosts, "\tshell\n") {
			t.Errorf("/etc/hosts: %q", hosts)
		}
		readonly := func(_ *container, sc *security) { sc.ReadonlyRootfs = true }
		if got := s.says(t, readonly, "sh", "-c",
			"for f in hostname hosts resolv.conf; do (: >> /etc/$f) 2>/dev/null || echo read-only; done"); got != strings.Repeat("read-only\n", 3) {
			t.Errorf("below a read-only root: %q", got)
		}
		look(t, "test -e /etc/mtab || echo none; grep -c '^root:' /etc/passwd; ls /run/.containerenv 2>/dev/null; true",
			"none\n1\n")
	})
	t.Run("namespaces", func(t *testing.T) {
		_, v2 := os.Stat("/sys/fs/cgroup/cgroup.controllers")
		for kind, own := range map[string]bool{"pid": true, "mnt": true, "net": true, "ipc": true, "uts": true, "user": false,
			"cgroup": v2 == nil} {
			node, err := os.Readlink("/proc/self/ns/" + kind)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimSpace(s.Output(t, id, "readlink", "/proc/1/ns/"+kind)); (got != node) != own {
				t.Errorf("%s: %s inside, %s on the node", kind, got, node)
			}
		}
	})
	t.Run("kernel parameters", func(t *testing.T) {
		got := kernelParameters(t, s.Daemon, id, "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range",
			"kernel/shm_rmid_forced", "kernel/domainname", "net/ipv4/ip_forward")
		// A new network namespace copies ip_forward from the machine's initial one, which may not be the
		// test's: net.core.devconf_inherit_init_net in Documentation/admin-guide/sysctl/net.rst.
		cat := exec.Command("cat", "/proc/sys/net/ipv4/ip_forward")
		cat.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET}
		forward, err := cat.Output()
		if err != nil {
			t.Fatal(err)
		}
		want := "map[kernel/domainname:(none) kernel/shm_rmid_forced:0 net/ipv4/ip_forward:" +
			strings.TrimSpace(string(forward)) +
			" net/ipv4/ip_unprivileged_port_start:0 net/ipv4/ping_group_range:0 2147483647]"
		if fmt.Sprint(got) != want {
			t.Errorf("%v, want %v", got, want)
		}
	})
	t.Run("cgroup", func(t *testing.T) {
		look(t, "cat /proc/1/cgroup | cut -d: -f3- | sort -u | grep -vc / || true", "0\n")
		for _, limit := range [][2]string{{"memory.limit_in_bytes", "memory.max"}, {"pids.max", "pids.max"},
			{"cpu.cfs_quota_us", "cpu.max"}} {
			got := limitOf(t, s, id, limit[0], limit[1])
			if got != "" && got != "max" && got != "-1" && got != "max 100000" && len(got) < 16 {
				t.Errorf("%s is %s, and nobody asked for a limit", limit[0], got)
			}
		}
	})
}

// asleep runs a container whose first process is sleep, and returns once that has been executed.
func (s *shell) asleep(t *testing.T, change func(*container, *security)) string {
	t.Helper()
	id := s.run(t, change, "sleep", "1000")
	harness.Eventually(t, 10*time.Second, "the first process is sleep", func() error {
		if name := s.Output(t, id, "cat", "/proc/1/comm"); name != "sleep\n" {
			return fmt.Errorf("it is %q", name)
		}
		return nil
	})
	return id
}

// limitOf reads a file of the container's cgroup, by its name on v1 or v2. It returns "" if there is none.
func limitOf(t *testing.T, s *shell, id, v1, v2 string) string {
	t.Helper()
	for _, name := range []string{v1, v2} {
		for _, pattern := range []string{"/sys/fs/cgroup/*/kuri/*/", "/sys/fs/cgroup/kuri/*/", "/sys/fs/cgroup/*/kuri/*/*/"} {
			found, _ := filepath.Glob(pattern + id + "/" + name)
			for _, f := range found {
				body, err := os.ReadFile(f)
				if err == nil {
					return strings.TrimSpace(string(body))
				}
			}
		}
	}
	return ""
}

// hasOptions reports whether a mount has all of some options.
func hasOptions(all, want string) bool {
	have := strings.Split(all, ",")
	for o := range strings.SplitSeq(want, ",") {
		if !slices.Contains(have, o) {
			return false
		}
	}
	return true
}

// lines returns the lines of a text, sorted.
func lines(text string) string {
	all := strings.SplitAfter(text, "\n")
	sort.Strings(all)
	return strings.Join(all, "")
}

// The limits of a container's processes are those with which kurid was started, here by this program.
// On cgroup v2 the keeper raises its own limit of locked memory.
func TestDefaultLimits(t *testing.T) {
	s := newShell(t)
	own, err := exec.Command("cat", "/proc/self/limits").Output()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // before the second one the keeper has certainly loaded a device program
		id := s.asleep(t, nil)
		for _, of := range []string{"1", "self"} {
			if got := s.Output(t, id, "cat", "/proc/"+of+"/limits"); got != string(own) {
				t.Errorf("of process %s:\n%s\nkurid's own are\n%s", of, got, own)
			}
		}
	}
}

// The settings of an image are defaults too. The container's configuration takes precedence.
func TestDefaultsOfAnImage(t *testing.T) {
	s := newShell(t)
	ref := s.pushes(t, "own:1", v1.Config{
		StopSignal: "SIGNOT", Env: []string{"PATH=/bin:/usr/bin", "HOSTNAME=image", "HOME=/srv", "TERM=dumb"},
		WorkingDir: "made/for/it", User: "33:7",
	}, image.File{Path: "/srv/", UID: 33})
	out := s.says(t, func(c *container, _ *security) { c.Image.Image, c.Tty = ref, true },
		"sh", "-c", "stty -onlcr; echo $PATH $HOSTNAME $HOME $TERM; pwd; stat -c '%a %u:%g' .; id -u; id -g; id -G")
	if want := "/bin:/usr/bin image /srv dumb\n/made/for/it\n755 0:0\n33\n7\n7\n"; strings.ReplaceAll(out, "\r",
		"") != want {
		t.Errorf("%q, want %q", out, want)
	}
}

// Requested settings without a meaning on this node are ignored with a line in the log, and the pod runs.
func TestWhatHasNoMeaningHere(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("SKIP: this machine has SELinux, and the labels would mean something")
	}
	s := &shell{Daemon: harness.Start(t, harness.Options{}), podConfig: harness.Pod("odd")}
	s.image = s.PullBusybox(t)
	s.podConfig.Hostname = "web-0.sub.ns.svc."
	s.podConfig.Windows = &runtimeapi.WindowsPodSandboxConfig{}
	s.podConfig.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}
	s.pod = s.RunPod(t, s.podConfig)
	dir := t.TempDir()
	odd := func(c *container, sc *security) {
		c.Windows = &runtimeapi.WindowsContainerConfig{}
		c.Mounts = []*runtimeapi.Mount{{HostPath: dir, ContainerPath: "relative/path", SelinuxRelabel: true}}
		sc.SelinuxOptions = &runtimeapi.SELinuxOption{User: "system_u", Role: "system_r", Type: "svirt_lxc_net_t",
			Level: "s0:c1,c2"}
	}
	out := s.says(t, odd, "sh", "-c",
		"hostname; cat /etc/hostname; echo $HOSTNAME; echo new > /relative/path/file && cat /relative/path/file")
	if out != "web-0.sub.ns.svc.\nweb-0.sub.ns.svc.\nweb-0.sub.ns.svc.\nnew\n" {
		t.Errorf("%q", out)
	}
	s.says(t, odd, "true") // again, for messages that are logged once
	log := s.Log(t)
	for text, times := range map[string]int{
		"pod default/odd": 0, "selinux_options: SELinux is not enabled": 3, "windows: ": 3, "is relative: ": 2,
		"volumes are not relabelled": 1,
	} {
		if n := strings.Count(log, text); times > 0 && n != times {
			t.Errorf("%d lines of the log have %q, want %d", n, text, times)
		}
	}
	// A pod's name identifies it if the client sends no other metadata.
	alone := harness.Pod("alone")
	alone.Metadata = &runtimeapi.PodSandboxMetadata{Name: "alone"}
	c := s.Run(t, s.RunPod(t, alone), harness.Container("main", s.image, "sleep", "1000"), alone)
	if got := s.Output(t, c, "hostname"); got != "alone\n" {
		t.Errorf("a pod without a namespace and a uid: %q", got)
	}
	for _, name := range []string{"a_b", "-a", "a..b", ".", strings.Repeat("x", 64)} {
		p := harness.Pod("named")
		p.Metadata.Uid, p.Hostname = name, name
		c := s.Run(t, s.RunPod(t, p), harness.Container("main", s.image, "sleep", "1000"), p)
		if got := s.Output(t, c, "hostname"); got != name+"\n" {
			t.Errorf("%q: the host name is %q", name, got)
		}
	}
}

var testName = regexp.MustCompile("`(Test[A-Za-z0-9]+)`")

// Each row of docs/defaults.md names an existing test.
func TestDefaultsPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(harness.Repository(), "docs/defaults.md"))
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]bool)
	for _, pattern := range []string{"test/*/*_test.go", "internal/*/*_test.go", "internal/*/*/*_test.go"} {
		files, _ := filepath.Glob(filepath.Join(harness.Repository(), pattern))
		for _, f := range files {
			body, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(body)) {
				if name, ok := strings.CutPrefix(line, "func "); ok && strings.HasPrefix(name, "Test") {
					name, _, _ = strings.Cut(name, "(")
					have[name] = true
				}
			}
		}
	}
	rows := 0
	for line := range strings.Lines(string(page)) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| what") {
			continue
		}
		rows++
		named := testName.FindAllStringSubmatch(line, -1)
		if len(named) == 0 {
			t.Errorf("a row names no test: %s", line)
		}
		for _, n := range named {
			if !have[n[1]] {
				t.Errorf("%s is not there: %s", n[1], line)
			}
		}
	}
	if rows < 30 {
		t.Errorf("the page has %d rows", rows)
	}
}
