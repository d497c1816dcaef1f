package server_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// report, with the numbers of some calls, prints what a process is in its container, but for what differs from one process to the next.
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
ls -l /proc/self/fd | sed 's/.* \([0-9]* -> .*\)/\1/; s/\[[0-9]*\]//; s/[0-9]*.fd$/fd/'
stat -L -c '%%F %%u %%g %%a' /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2
echo written >/dev/stderr
/calls 424-600 1000 %d %d %d:0 %d:4 %d %d
set -- $(cut -d' ' -f1,5,6 /proc/self/stat); test $2 = $3 && echo its own session
`

// byLibcontainer has the keeper leave a container's execs to libcontainer: its own personality is not a change.
func byLibcontainer(j *job) {
	j.spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux}
}

// filtered gives a container the filter of RuntimeDefault, for the capabilities that it has.
func filtered(j *job) {
	profile, err := seccomp.GetDefaultProfile(j.spec)
	if err != nil {
		panic(err)
	}
	j.spec.Linux.Seccomp = profile
}

// ownFilter changes the filter to one that fails calls in ways of its own, by their arguments, and kills.
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

// buildCalls builds the program that makes system calls by number.
func buildCalls(t *testing.T) []byte {
	t.Helper()
	program := filepath.Join(t.TempDir(), "calls")
	if out, err := exec.Command("cc", "-static", "-Os", "-s", "-o", program, "testdata/calls.c").CombinedOutput(); err != nil {
		t.Fatalf("build calls: %v\n%s", err, out)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// TestExecConformance has the fork server and libcontainer start the same process: it cannot tell the difference.
func TestExecConformance(t *testing.T) {
	n, calls := newNode(t), buildCalls(t)
	caps := []string{"CAP_NET_BIND_SERVICE", "CAP_CHOWN"}
	umask, oom := uint32(0o077), 321
	user := func(j *job) {
		p := j.spec.Process
		p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8, 1001}, Umask: &umask}
		p.Cwd, p.OOMScoreAdj = "/tmp", &oom
		p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_MEMLOCK", Soft: 1 << 20, Hard: 1 << 21}}
		p.Env = append(p.Env, "A=1", "A=2", "EMPTY=", "HOME=")
	}
	ambient := func(j *job) {
		user(j)
		p := j.spec.Process
		p.NoNewPrivileges, p.Rlimits = false, nil
		p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps, Ambient: caps[:1]}
	}
	without := func(kind specs.LinuxNamespaceType) func(*job) {
		return func(j *job) {
			j.spec.Linux.Namespaces = slices.DeleteFunc(j.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
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
					return slices.Contains([]string{"setresuid", "setresgid", "prlimit64", "setrlimit", "sendto", "sendmsg", "faccessat2"}, name)
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
			for i, way := range []func(*job){func(*job) {}, byLibcontainer} {
				j := n.run(box, "sleep 1000", c.change, way, func(j *job) {
					n.must(os.MkdirAll(filepath.Join(j.Rootfs.Upperdir, "etc"), 0o755))
					n.must(os.WriteFile(filepath.Join(j.Rootfs.Upperdir, "calls"), calls, 0o755))
					n.must(os.WriteFile(filepath.Join(j.Rootfs.Upperdir, "etc/passwd"), []byte("\nroot:x:0:0::/root:/bin/sh\nu:x:1234:5::/home/u:\n"), 0o644))
					if c.box != nil {
						n.must(os.Chown(j.Rootfs.Upperdir, 1<<20, 1<<20))
					}
				})
				var init string
				eventually(func() bool {
					_, init, _ = n.exec(j, `ps -o pid,args | awk '$2 == "sleep" && $3 == "1000" {print $1}' | tail -n 1`)
					return init != ""
				})
				old := n.forkServer()
				if old != 0 {
					n.must(unix.Kill(old, unix.SIGKILL))
					eventually(func() bool { return n.forkServer() != old })
				}
				code, out, stderr := n.exec(j, "INIT="+strings.TrimSpace(init)+"\n"+fmt.Sprintf(report,
					unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_GETPRIORITY, unix.SYS_GETPRIORITY, unix.SYS_UNSHARE, unix.SYS_BPF))
				if used := n.forkServer() != 0; used != (i == 0) {
					t.Errorf("way %d: the fork server was used: %v", i, used)
				}
				reports[i] = fmt.Sprintf("%d\n%s\n%s", code, out, stderr)
				n.must(n.Delete(t.Context(), j.Id))
			}
			if reports[0] != reports[1] {
				t.Errorf("by the fork server:\n%s\nby libcontainer:\n%s", reports[0], reports[1])
			}
			if !strings.Contains(reports[0], "its own session") || !strings.Contains(reports[0], "written") {
				t.Errorf("report: %s", reports[0])
			}
		})
	}
}

// An exec has its container's filter: the default's answers, those of its own, and the one to calls that are newer.
func TestExecsAreFiltered(t *testing.T) {
	n := newNode(t)
	calls := buildCalls(t)
	for _, gains := range []bool{false, true} {
		j := n.run(n.sandbox(), "sleep 1000", filtered, ownFilter, func(j *job) {
			j.spec.Process.NoNewPrivileges = !gains
			n.must(os.WriteFile(filepath.Join(j.Rootfs.Upperdir, "calls"), calls, 0o755))
		})
		var program, want string
		for _, c := range []struct {
			nr     int
			args   string
			answer string
		}{
			{unix.SYS_UNSHARE, "", fmt.Sprintf("errno %d", unix.EPERM)}, // EINVAL without the filter
			{unix.SYS_KEYCTL, "", fmt.Sprintf("signal %d", unix.SIGSYS)},
			{unix.SYS_ADD_KEY, "", fmt.Sprintf("signal %d", unix.SIGSYS)},
			{unix.SYS_GETPRIORITY, ":4", fmt.Sprintf("errno %d", unix.EDOM)},
			{unix.SYS_GETPRIORITY, ":5", fmt.Sprintf("errno %d", unix.EINVAL)}, // the kernel's answer
			{1000, "", fmt.Sprintf("errno %d", unix.ENOSYS)},
		} {
			program += fmt.Sprintf(" %d%s", c.nr, c.args)
			want += fmt.Sprintf("%d: %s\n", c.nr, c.answer)
		}
		if code, out, stderr := n.exec(j, "/calls"+program); code != 0 || out != want || stderr != "" {
			t.Errorf("privileges to gain %v: exit code %d\n%s%s\nnot\n%s", gains, code, out, stderr, want)
		}
		if n.forkServer() == 0 {
			t.Error("there is no fork server")
		}
	}
}

// What is wrong with a request is told alike, too: the kind of the error and the program.
func TestExecErrorsEitherWay(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	for i, way := range []func(*job){func(*job) {}, byLibcontainer} {
		j := n.run(box, "echo x >/tmp/text; chmod 755 /tmp/text; mkdir /tmp/dir; echo ready; sleep 1000", way)
		n.waitOutput(j, "ready")
		for _, program := range []string{"nonesuch", "/nonesuch", "/etc/passwd", "/tmp/dir", "/etc/passwd/x"} {
			_, err := n.Exec(t.Context(), j.Id, []string{program}, false, keeper.Streams{})
			if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), program) {
				t.Errorf("%s: %v", program, err)
			}
		}
		// What only the kernel finds out, libcontainer does not tell.
		if _, err := n.Exec(t.Context(), j.Id, []string{"/tmp/text"}, false, keeper.Streams{}); i == 0 && !errors.Is(err, fault.Invalid) {
			t.Errorf("not a program: %v", err)
		}
		n.wantNoExecCgroups(j)
	}
}

// CVE-2019-5736: a program of the container that is a script for the program which starts it does not get hold of that.
func TestExecGivesNoHoldOnTheKeeper(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), `printf '#!/proc/self/exe\n' >/tmp/trap; chmod 755 /tmp/trap; echo ready; sleep 1000`)
	n.waitOutput(j, "ready")
	n.Exec(t.Context(), j.Id, []string{"/tmp/trap"}, false, keeper.Streams{}) // the keeper's program, without what it needs
	// While one starts, the container tries to open what it runs from.
	var stop sync.WaitGroup
	stop.Go(func() {
		for range 100 {
			n.Exec(t.Context(), j.Id, []string{"true"}, false, keeper.Streams{})
		}
	})
	_, out, _ := n.exec(j, `i=0; while test $i -lt 300; do i=$((i+1)); for p in /proc/[0-9]*; do
		case "$(readlink $p/exe 2>/dev/null)" in *keeper*|*memfd*) (: >>$p/exe) 2>/dev/null && echo open $p;; esac
		case "$(readlink $p/root 2>/dev/null)" in ""|/) ;; *) echo root $p;; esac
		done; done; echo done`)
	stop.Wait()
	if out != "done\n" {
		t.Errorf("%s", out)
	}
}

// CVE-2024-21626: no descriptor of the host's can be a working directory.
func TestExecEntersNoDirectoryOfTheHost(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	for fd := range 12 {
		// Its init finds a directory there, its execs find what they have at that number.
		j := n.run(box, "sleep 1000", func(j *job) {
			n.must(os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), filepath.Join(j.Rootfs.Upperdir, "dir")))
			j.spec.Process.Cwd = "/tmp"
		})
		body, err := os.ReadFile(filepath.Join(j.Bundle, "config.json"))
		n.must(err)
		n.must(os.WriteFile(filepath.Join(j.Bundle, "config.json"), []byte(strings.Replace(string(body), `"cwd":"/tmp"`, `"cwd":"/dir"`, 1)), 0o600))
		if _, err := n.Exec(t.Context(), j.Id, []string{"pwd"}, false, keeper.Streams{}); !errors.Is(err, fault.Invalid) {
			t.Errorf("descriptor %d: %v", fd, err)
		}
		n.must(n.Delete(t.Context(), j.Id))
	}
}

// forkServer is the pid of the keeper's.
func (n *node) forkServer() int {
	n.t.Helper()
	info, err := n.Info(n.t.Context())
	n.must(err)
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", info.Pid, info.Pid))
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", info.Pid))
	for _, f := range tasks {
		more, _ := os.ReadFile(f)
		children = append(append(children, ' '), more...)
	}
	for _, pid := range strings.Fields(string(children)) {
		if comm, _ := os.ReadFile("/proc/" + pid + "/comm"); string(comm) == "kuri-forkserver\n" {
			var n int
			fmt.Sscan(pid, &n)
			return n
		}
	}
	return 0
}

func TestForkServerIsStartedAnew(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	for range 3 {
		if code, _, _ := n.exec(j, "exit 7"); code != 7 {
			t.Fatal(code)
		}
		pid := n.forkServer()
		if pid == 0 {
			t.Fatal("there is no fork server")
		}
		n.must(unix.Kill(pid, unix.SIGKILL))
		if !eventually(func() bool { return unix.Kill(pid, 0) == unix.ESRCH }) {
			t.Fatal("it was not reaped")
		}
	}
}

// Execs do not make the keeper grow, nor leave anything of theirs.
func TestManyExecs(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	info, err := n.Info(t.Context())
	n.must(err)
	run := func(times int) {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				for range times / 20 {
					if code, err := n.Exec(t.Context(), j.Id, []string{"true"}, false, keeper.Streams{}); err != nil || code != 0 {
						t.Error(code, err)
					}
				}
			})
		}
		all.Wait()
		time.Sleep(2500 * time.Millisecond) // it gives back what it does not need
	}
	run(200)
	before, descriptors := memory(t, int(info.Pid)), n.descriptors()
	run(1000)
	if grown := memory(t, int(info.Pid)) - before; grown > 1024 && !raceDetector {
		t.Errorf("the keeper has grown by %d KB", grown)
	}
	t.Logf("the fork server takes %d KB, the keeper %d KB", memory(t, n.forkServer()), memory(t, int(info.Pid)))
	if now := n.descriptors(); now > descriptors {
		t.Errorf("%d descriptors became %d", descriptors, now)
	}
	n.wantNoExecCgroups(j)
	if left := zombies(int(info.Pid)); len(left) > 0 {
		t.Errorf("zombies: %v", left)
	}
}

// Of a container that may have no more processes that is said.
func TestExecBeyondTheProcessLimit(t *testing.T) {
	n := newNode(t)
	limit := int64(1)
	j := n.run(n.sandbox(), "exec sleep 1000", func(j *job) { j.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit} })
	_, err := n.Exec(t.Context(), j.Id, []string{"true"}, false, keeper.Streams{})
	if !errors.Is(err, fault.Exhausted) || !strings.Contains(err.Error(), "as many processes") {
		t.Error(err)
	}
	n.wantNoExecCgroups(j)
}

// A container ends while execs are being started in it: they are told so, whatever step it was that failed. Those that
// have begun end with it, by its SIGKILL.
func TestExecsThatMeetTheExit(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	for range 8 {
		j := n.run(box, "exec sleep 0.05")
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for {
					code, err := n.Exec(t.Context(), j.Id, []string{"true"}, false, keeper.Streams{})
					if err == nil && code != 0 && code != 137 {
						t.Errorf("exit code %d", code)
					}
					if err != nil {
						wantKind(t, err, fault.Precondition)
						return
					}
				}
			})
		}
		all.Wait()
		n.wantNoExecCgroups(j)
	}
}
