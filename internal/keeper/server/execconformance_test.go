package server_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// report, with the numbers of some system calls, prints the attributes of a process in its
// container that do not differ between processes.
const report = `
id
grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid|Sig[BIC]|Umask|Speculation|Cpus_allowed|CoreDump)' /proc/self/status
cat /proc/self/limits /proc/self/oom_score_adj /proc/self/personality
sed 's/[0-9a-f]\{64\}/ID/; s/exec-[0-9]*/exec/' /proc/self/cgroup
for ns in cgroup ipc mnt net pid user uts; do
	echo $ns $(test "$(readlink /proc/self/ns/$ns)" = "$(readlink /proc/$INIT/ns/$ns)" && echo shared)
done
pwd; umask; tty
env | grep -v INIT | sort
ls -l /proc/self/fd 2>/dev/null | sed -n 's/.* \([0-9]* -> .*\)/\1/; s/\[[0-9]*\]//; s/[0-9]*.fd$/fd/; / -> /p'
stat -L -c '%%F %%u %%g %%a' /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2
echo written >/dev/stderr
/calls 424-600 1000 %d %d %d:0 %d:4 %d %d
set -- $(cut -d' ' -f1,5,6 /proc/self/stat); test $2 = $3 && echo its own session
`

// screenReport prints the attributes of a process's terminal.
const screenReport = `
stty -a; stty size
stat -c '%F %u %g %a %t %T' $(tty) /dev/tty /dev/ptmx
ls /dev/pts
set -- $(cut -d' ' -f5,6,7,8 /proc/self/stat); test $1 = $2 -a $1 = $4 && echo in the foreground of terminal $3
echo seen >/dev/tty
`

// byLibcontainer makes the keeper run a container's execs by libcontainer: the personality set here
// is the current one.
func byLibcontainer(j *job) {
	j.spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux}
}

// filtered gives a container the seccomp filter of RuntimeDefault for its capabilities.
func filtered(j *job) {
	profile, err := seccomp.GetDefaultProfile(j.spec)
	if err != nil {
		panic(err)
	}
	j.spec.Linux.Seccomp = profile
}

// ownFilter changes the filter so that calls fail with other errors, fail depending on arguments,
// or kill.
func ownFilter(j *job) {
	failure := uint(unix.EDOM)
	profile := j.spec.Linux.Seccomp
	profile.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow}
	for i := range profile.Syscalls {
		c := &profile.Syscalls[i]
		c.Names = slices.DeleteFunc(c.Names, func(name string) bool { return name == "personality" || name == "getpriority" })
	}
	profile.Syscalls = append(profile.Syscalls,
		specs.LinuxSyscall{Names: []string{"keyctl"}, Action: specs.ActKillProcess},
		specs.LinuxSyscall{Names: []string{"add_key"}, Action: specs.ActTrap},
		specs.LinuxSyscall{Names: []string{"personality"}, Action: specs.ActAllow},
		specs.LinuxSyscall{Names: []string{"getpriority"}, Action: specs.ActErrno, ErrnoRet: &failure,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: 4, Op: specs.OpEqualTo}}},
		specs.LinuxSyscall{Names: []string{"getpriority"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 0, Value: 4, Op: specs.OpNotEqual}}},
	)
}

// build builds a program in testdata.
func build(t *testing.T, name string) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command("cc", "-static", "-Os", "-s", "-o", program, "testdata/"+name+
		".c").CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// TestExecConformance starts the same process by the fork server and by libcontainer. The process
// must see no difference.
func TestExecConformance(t *testing.T) {
	n, calls := newNode(t), build(t, "calls")
	caps := []string{"CAP_NET_BIND_SERVICE", "CAP_CHOWN"}
	umask, oom := uint32(0o077), 321
	user := func(j *job) {
		p := j.spec.Process
		p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8, 1001}, Umask: &umask}
		p.Cwd, p.OOMScoreAdj = "/tmp", &oom
		p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"},
			{Type: "RLIMIT_MEMLOCK", Soft: 1 << 20, Hard: 1 << 21}}
		p.Env = append(p.Env, "A=1", "A=2", "EMPTY=", "HOME=")
		p.ConsoleSize = &specs.Box{Width: 111, Height: 44}
	}
	ambient := func(j *job) {
		user(j)
		p := j.spec.Process
		p.NoNewPrivileges, p.Rlimits = false, nil
		p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps,
			Ambient: caps[:1]}
	}
	without := func(kind specs.LinuxNamespaceType) func(*job) {
		return func(j *job) {
			j.spec.Linux.Namespaces = slices.DeleteFunc(j.spec.Linux.Namespaces,
				func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
		}
	}
	ids := []*api.IDMapping{{HostId: 1 << 20, Length: 5000}}
	mapped := func(req *api.CreateSandboxRequest) { req.UidMappings, req.GidMappings = ids, ids }
	for _, c := range []struct {
		name   string
		box    func(*api.CreateSandboxRequest)
		change func(*job)
	}{
		{"root", nil, func(*job) {}},
		{"a user", nil, user},
		{"ambient capabilities, privileges to gain", nil, ambient},
		{"all capabilities", nil, func(j *job) { j.spec.Process.Capabilities = nil }},
		{"all capabilities, a user, a filter", nil, func(j *job) {
			filtered(j)
			j.spec.Process.Capabilities, j.spec.Process.NoNewPrivileges, j.spec.Process.User.UID = nil, false, 1234
		}},
		{"HOME of the user", nil, func(j *job) { j.spec.Process.User.UID = 1234 }},
		{"a cgroup namespace", nil, func(j *job) {
			j.spec.Linux.Namespaces = append(j.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}},
		{"the host's processes", nil, without(specs.PIDNamespace)},
		{"the pod's processes", func(req *api.CreateSandboxRequest) { req.Pid = true }, user},
		{"a user namespace", mapped, func(*job) {}},
		{"a user in a user namespace", mapped, func(j *job) { user(j); j.spec.Process.OOMScoreAdj = nil }},
		{"the default filter", nil, filtered},
		{"the default filter, a user, privileges to gain", nil, func(j *job) { ambient(j); filtered(j) }},
		{"the default filter, a user namespace", mapped, filtered},
		{"the default filter, a capability that allows more", nil, func(j *job) {
			c := j.spec.Process.Capabilities
			c.Bounding = append(c.Bounding, "CAP_SYS_ADMIN")
			c.Effective, c.Permitted = c.Bounding, c.Bounding
			filtered(j)
		}},
		{"a filter of one's own", nil, func(j *job) { user(j); filtered(j); ownFilter(j) }},
		{"a filter of one's own, privileges to gain", nil, func(j *job) { ambient(j); filtered(j); ownFilter(j) }},
		{"a filter without flags", nil, func(j *job) {
			filtered(j)
			j.spec.Linux.Seccomp.Flags = []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC"}
		}},
		{"a filter that allows the start no more than libcontainer needs", nil, func(j *job) {
			user(j)
			j.spec.Process.NoNewPrivileges = false
			filtered(j)
			for i := range j.spec.Linux.Seccomp.Syscalls {
				c := &j.spec.Linux.Seccomp.Syscalls[i]
				c.Names = slices.DeleteFunc(c.Names, func(name string) bool {
					return slices.Contains([]string{"setresuid", "setresgid", "prlimit64", "setrlimit", "sendto", "sendmsg",
						"faccessat2"}, name)
				})
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			change := []func(*api.CreateSandboxRequest){}
			if c.box != nil {
				change = append(change, c.box)
			}
			box := n.sandbox(change...)
			var reports [2]string
			nap := fmt.Sprint(1_000_000 + os.Getpid()) // unique on the host, where other tests' processes sleep, too
			for i, way := range []func(*job){func(*job) {}, byLibcontainer} {
				j := n.run(box, "sleep "+nap, c.change, way, func(j *job) {
					n.must(os.MkdirAll(filepath.Join(j.Rootfs.Upperdir, "etc"), 0o755))
					n.must(os.WriteFile(filepath.Join(j.Rootfs.Upperdir, "calls"), calls, 0o755))
					n.must(os.WriteFile(filepath.Join(j.Rootfs.Upperdir, "etc/passwd"),
						[]byte("\nroot:x:0:0::/root:/bin/sh\nu:x:1234:5::/home/u:\n"), 0o644))
					if c.box != nil {
						n.must(os.Chown(j.Rootfs.Upperdir, 1<<20, 1<<20))
					}
				})
				var init string
				eventually(func() bool {
					_, init, _ = n.exec(j, `ps -o pid,args | awk '$2 == "sleep" && $3 == "`+nap+`" {print $1}' | tail -n 1`)
					return init != ""
				})
				old := n.forkServer()
				if old != 0 {
					n.must(unix.Kill(old, unix.SIGKILL))
					eventually(func() bool { return n.forkServer() != old })
				}
				script := "INIT=" + strings.TrimSpace(init) + "\n" + fmt.Sprintf(report,
					unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_GETPRIORITY, unix.SYS_GETPRIORITY, unix.SYS_UNSHARE, unix.SYS_BPF)
				code, out, stderr := n.exec(j, script)
				screenCode, screen := n.execOnTerminal(j, script+screenReport)
				if used := n.forkServer() != 0; used != (i == 0) {
					t.Errorf("way %d: the fork server was used: %v", i, used)
				}
				reports[i] = fmt.Sprintf("%d\n%s\n%s\non a terminal: %d\n%s", code, out, stderr, screenCode, screen)
				n.must(n.Delete(t.Context(), j.Id))
			}
			if reports[0] != reports[1] {
				t.Errorf("by the fork server (-) and by libcontainer (+):\n%s",
					strings.Join(differences(reports[0], reports[1]), "\n"))
			}
			for _, want := range []string{"its own session", "written", "/dev/pts/0", "in the foreground of terminal", "seen"} {
				if !strings.Contains(reports[0], want) {
					t.Errorf("no %q in the report: %s", want, reports[0])
				}
			}
		})
	}
}

// differences returns the lines in which two reports differ.
func differences(a, b string) (lines []string) {
	theirs := strings.Split(b, "\n")
	for n, line := range strings.Split(a, "\n") {
		if n >= len(theirs) {
			lines = append(lines, fmt.Sprintf("%d - %s", n, line))
		} else if line != theirs[n] {
			lines = append(lines, fmt.Sprintf("%d - %s", n, line), fmt.Sprintf("%d + %s", n, theirs[n]))
		}
	}
	return lines
}
