package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// needSELinux skips t unless the kernel has a policy. Until one is loaded every process has the
// label "kernel".
func needSELinux(t *testing.T) {
	t.Helper()
	own, err := os.ReadFile("/proc/self/attr/current")
	_, mounted := os.Stat("/sys/fs/selinux/enforce")
	if err != nil || mounted != nil || string(bytes.TrimRight(own, "\x00\n")) == "kernel" {
		t.Skip("SKIP: SELinux is not enabled on this machine; make test-vm has it")
	}
}

// fileLabel returns the SELinux context of a file.
func fileLabel(t *testing.T, path string) string {
	t.Helper()
	b := make([]byte, 256)
	n, err := unix.Lgetxattr(path, "security.selinux", b)
	if err != nil {
		t.Errorf("label of %s: %v", path, err)
		return ""
	}
	return strings.TrimRight(string(b[:n]), "\x00")
}

// asking returns a change that requests parts of a context for a container.
func asking(o *runtimeapi.SELinuxOption) func(*container, *security) {
	return func(_ *container, sc *security) { sc.SelinuxOptions = o }
}

const (
	ownLabel = "tr -d '\\000\\n' </proc/self/attr/current; echo"
	fileType = "system_u:object_r:container_file_t:"
)

func TestSELinux(t *testing.T) {
	needSELinux(t)
	s := newShell(t)

	// 1. Without a request the container has the default context, with two categories of its pod.
	plain := strings.TrimSpace(s.says(t, nil, "sh", "-c", ownLabel))
	if !regexp.MustCompile(`^system_u:system_r:container_t:s0:c\d+,c\d+$`).MatchString(plain) {
		t.Fatalf("nothing asked: %q", plain)
	}
	_, level, _ := strings.Cut(plain, "container_t:")
	other := harness.Pod("other")
	otherPod := s.RunPod(t, other)
	if id := s.Run(t, otherPod, s.config(nil, "sh", "-c", ownLabel), other); s.WaitExit(t, id).ExitCode != 0 ||
		strings.TrimSpace(s.LogText(t, id, "stdout")) == plain {
		t.Errorf("another pod has %q, too", plain)
	}

	// 2. Each requested part is applied.
	for name, c := range map[string]struct {
		change func(*container, *security)
		want   string
	}{
		"the pod's": {nil, plain},
		"level":     {asking(&runtimeapi.SELinuxOption{Level: "s0:c5,c6"}), "system_u:system_r:container_t:s0:c5,c6"},
		"type": {asking(&runtimeapi.SELinuxOption{Type: "container_init_t"}), "system_u:system_r:container_init_t:" +
			level},
		"all of it": {asking(&runtimeapi.SELinuxOption{User: "kuri_u", Role: "system_r", Type: "spc_t", Level: "s0"}),
			"kuri_u:system_r:spc_t:s0"},
		"user, type": {asking(&runtimeapi.SELinuxOption{User: "kuri_u", Type: "container_t"}),
			"kuri_u:system_r:container_t:" + level},
	} {
		if out := s.says(t, c.change, "sh", "-c", ownLabel); out != c.want+"\n" {
			t.Errorf("%s: %q, want %q", name, out, c.want)
		}
	}
	for _, o := range []*runtimeapi.SELinuxOption{{Type: "absent_t"}, {Level: "s9"}, {Type: `x",nosuid`}} {
		harness.WantError(t, s.refuses(t, asking(o), "true"), codes.InvalidArgument, "selinux_options")
	}

	// 3. After a restart the daemon still knows the pod's level.
	s.Restart(t)
	if out := s.says(t, nil, "sh", "-c", ownLabel); out != plain+"\n" {
		t.Errorf("after a restart: %q, want %q", out, plain)
	}
}

// Execs are confined like the container, and the files that it sees have labels that it may access.
func TestSELinuxInside(t *testing.T) {
	needSELinux(t)
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	out := s.Output(t, id, "sh", "-c", ownLabel)
	_, level, ok := strings.Cut(strings.TrimSpace(out), "system_u:system_r:container_t:")
	if !ok {
		t.Fatalf("exec: %q", out)
	}
	x := onTerminal(t, s.Daemon, "exec", "-it", id, "--", "sh", "-c", ownLabel+"; exit 3")
	x.expect("system_u:system_r:container_t:" + level + "\r\n")
	if code := x.exit(); code != 3 {
		t.Errorf("exec on a terminal: exit code %d", code)
	}
	root := fmt.Sprintf("/proc/%d/root", harness.FindProcess(t, "sleep 1000"))
	s.Output(t, id, "touch", "/dev/shm/x", "/new")
	files := []string{"/etc/hosts", "/etc/resolv.conf", "/etc/hostname"}
	for _, path := range append([]string{"/", "/bin", "/new", "/dev", "/dev/shm", "/dev/shm/x"}, files...) {
		if got := fileLabel(t, root+path); got != fileType+level {
			t.Errorf("%s: %q, want %q", path, got, fileType+level)
		}
	}
	// A container with a level of its own can also read the pod's files.
	s.says(t, asking(&runtimeapi.SELinuxOption{Level: "s0:c5,c6"}), "true")
	for _, path := range files {
		if got := fileLabel(t, root+path); got != fileType+"s0" {
			t.Errorf("%s, shared with a container of another level: %q", path, got)
		}
	}
	own := s.run(t, asking(&runtimeapi.SELinuxOption{User: "kuri_u", Role: "system_r", Type: "spc_t", Level: "s0"}),
		"sleep", "1001")
	if out := s.Output(t, own, "sh", "-c", ownLabel); out != "kuri_u:system_r:spc_t:s0\n" {
		t.Errorf("exec in a container with a context of its own: %q", out)
	}
	wantForkServer(t, s.Daemon)
}

// A privileged container is not confined: it has the label that the policy gives to children of Kuri.
func TestSELinuxPrivileged(t *testing.T) {
	needSELinux(t)
	s := newShell(t)
	pod := harness.Pod("privileged")
	pod.Linux.SecurityContext.Privileged = true
	pod.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "container_init_t", Level: "s0:c7"}
	podID := s.RunPod(t, pod)
	run := func(privileged bool) string {
		c := s.config(func(_ *container, sc *security) { sc.Privileged = privileged }, "sh", "-c", ownLabel)
		id := s.Run(t, podID, c, pod)
		s.WaitExit(t, id)
		return strings.TrimSpace(s.LogText(t, id, "stdout"))
	}
	own, err := os.ReadFile("/proc/self/attr/current")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(strings.TrimRight(string(own), "\x00\n"), ":kernel_t:", ":spc_t:", 1)
	if out := run(true); out != want {
		t.Errorf("privileged: %q, want %q", out, want)
	}
	if out := run(false); out != "system_u:system_r:container_init_t:s0:c7" {
		t.Errorf("another container of its pod, which asks for a context: %q", out)
	}
}

func TestSELinuxRelabel(t *testing.T) {
	needSELinux(t)
	s := newShell(t)
	dir := t.TempDir()
	file := harness.Write(t, dir, "file", "x")
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	node := fileLabel(t, "/etc/passwd")
	mounting := func(host string, relabel bool, level string) func(*container, *security) {
		return func(c *container, sc *security) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: "/v", SelinuxRelabel: relabel}}
			sc.SelinuxOptions = &runtimeapi.SELinuxOption{Level: level}
		}
	}
	before := fileLabel(t, file)
	s.says(t, mounting(dir, false, "s0:c1,c2"), "true")
	if got := fileLabel(t, file); got != before {
		t.Errorf("without relabelling: %q, was %q", got, before)
	}
	for _, level := range []string{"s0:c1,c2", "s0:c3", "s0"} { // private twice, and shared
		s.says(t, mounting(dir, true, level), "true")
		for _, path := range []string{dir, file, filepath.Join(dir, "link")} {
			if got := fileLabel(t, path); got != fileType+level {
				t.Errorf("relabelled for %s: %s is %q", level, path, got)
			}
		}
	}
	if got := fileLabel(t, "/etc/passwd"); got != node {
		t.Errorf("what a link of the volume leads to was relabelled: %q", got)
	}
	for _, path := range []string{"/", "/usr", "/usr/share", "/bin", "/etc", "/etc/passwd", "/var/lib", "/home", "/tmp"} {
		err := s.refuses(t, mounting(path, true, "s0"), "true")
		harness.WantError(t, err, codes.InvalidArgument, "mounts[0].selinux_relabel", "relabelled")
	}
}
