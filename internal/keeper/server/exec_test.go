package server_test

import (
	"context"
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
	if out, err := exec.Command("cc", "-static", "-Os", "-s", "-o", program, "testdata/"+name+".c").CombinedOutput(); err != nil {
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
		p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}, {Type: "RLIMIT_MEMLOCK", Soft: 1 << 20, Hard: 1 << 21}}
		p.Env = append(p.Env, "A=1", "A=2", "EMPTY=", "HOME=")
		p.ConsoleSize = &specs.Box{Width: 111, Height: 44}
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
			nap := fmt.Sprint(1_000_000 + os.Getpid()) // unique on the host, where other tests' processes sleep, too
			for i, way := range []func(*job){func(*job) {}, byLibcontainer} {
				j := n.run(box, "sleep "+nap, c.change, way, func(j *job) {
					n.must(os.MkdirAll(filepath.Join(j.Rootfs.Upperdir, "etc"), 0o755))
					n.must(os.WriteFile(filepath.Join(j.Rootfs.Upperdir, "calls"), calls, 0o755))
					n.must(os.WriteFile(filepath.Join(j.Rootfs.Upperdir, "etc/passwd"), []byte("\nroot:x:0:0::/root:/bin/sh\nu:x:1234:5::/home/u:\n"), 0o644))
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
				t.Errorf("by the fork server (-) and by libcontainer (+):\n%s", strings.Join(differences(reports[0], reports[1]), "\n"))
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

// An exec has its container's filter: the default results, other results, and that for newer calls.
func TestExecsAreFiltered(t *testing.T) {
	n := newNode(t)
	calls := build(t, "calls")
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

// Both ways report a wrong request alike: the kind of the error and the program.
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
		// libcontainer does not report errors that only the kernel detects.
		if _, err := n.Exec(t.Context(), j.Id, []string{"/tmp/text"}, false, keeper.Streams{}); i == 0 && !errors.Is(err, fault.Invalid) {
			t.Errorf("not a program: %v", err)
		}
		n.wantNoExecCgroups(j)
	}
}

// CVE-2019-5736: a program in the container whose interpreter is the program that starts it must
// not get access to that program.
func TestExecGivesNoHoldOnTheKeeper(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), `printf '#!/proc/self/exe\n' >/tmp/trap; chmod 755 /tmp/trap; echo ready; sleep 1000`)
	n.waitOutput(j, "ready")
	n.Exec(t.Context(), j.Id, []string{"/tmp/trap"}, false, keeper.Streams{}) // the keeper's program, without its arguments
	// While an exec starts, the container tries to open its program.
	var stop sync.WaitGroup
	stop.Go(func() {
		for range 100 {
			n.Exec(t.Context(), j.Id, []string{"true"}, false, keeper.Streams{})
			if code, err := n.Copy(t.Context(), j.Id, []string{"isdir", "/"}, keeper.Streams{}); code != 0 || err != nil {
				t.Errorf("the copier: exit code %d, %v", code, err)
				return
			}
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

// A container that may trace its processes finds nothing in one that is about to exec beyond what
// the program will have. A long PATH gives it time to look.
func TestExecIsBornWithNothingOfTheHost(t *testing.T) {
	n, look := newNode(t), build(t, "look")
	caps := []string{"CAP_CHOWN", "CAP_SYS_PTRACE"}
	for name, change := range map[string]func(*job){
		"no privileges to gain": func(j *job) { j.spec.Process.NoNewPrivileges = true },
		"a filter, a user": func(j *job) {
			filtered(j)
			j.spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7}}
		},
		"a filter, privileges":   func(j *job) { filtered(j); j.spec.Process.NoNewPrivileges = false },
		"privileges, no filters": func(j *job) { j.spec.Process.NoNewPrivileges = false },
	} {
		t.Run(name, func(t *testing.T) {
			j := n.run(n.sandbox(), "sleep 1000", func(j *job) {
				p := j.spec.Process
				p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps, Ambient: caps}
				n.must(os.WriteFile(filepath.Join(j.Rootfs.Upperdir, "look"), look, 0o755))
				p.Env = []string{"PATH=" + strings.Repeat("/x:", 40000) + "/bin"}
				change(j)
			})
			ctx, cancel := context.WithCancel(t.Context())
			var others sync.WaitGroup
			for i := range 4 {
				others.Go(func() {
					for ctx.Err() == nil {
						n.Exec(ctx, j.Id, []string{"true"}, i%2 == 0, keeper.Streams{})
					}
				})
			}
			_, out, stderr := n.exec(j, "/look")
			cancel()
			others.Wait()
			if strings.Repeat("looked\n", strings.Count(out, "\n")) != out || out == "" || stderr != "" {
				t.Errorf("one that is about to execute: %s%s", out, stderr)
			}
		})
	}
}

// A container that replaces the files from which its terminals are created gets no terminal, and
// delays nothing.
func TestTerminalOfAHostileContainer(t *testing.T) {
	n := newNode(t)
	caps := []string{"CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE"}
	for name, script := range map[string]string{
		"nothing":                           "umount /dev/pts",
		"a pipe":                            "mount -t tmpfs x /dev/pts; mkfifo /dev/pts/ptmx",
		"a device":                          "mount -t tmpfs x /dev/pts; mknod /dev/pts/ptmx c 1 3",
		"the device, not in its filesystem": "mount -t tmpfs x /dev/pts; mknod /dev/pts/ptmx c 5 2",
		"a link":                            "mkdir /dev/real; mount -t devpts -o newinstance x /dev/real; umount /dev/pts; rmdir /dev/pts; ln -s real /dev/pts",
		"a link to a file":                  "mount -t tmpfs x /dev/pts; ln -s /proc/1/mem /dev/pts/ptmx",
		"a terminal":                        "exec 3<>/dev/ptmx; mount -t tmpfs x /tmp; touch /tmp/x; mount -o bind /dev/pts/0 /tmp/x; mount -t tmpfs x /dev/pts; touch /dev/pts/ptmx; mount -o bind /tmp/x /dev/pts/ptmx",
	} {
		t.Run(name, func(t *testing.T) {
			j := n.run(n.sandbox(), script+"\necho ready; sleep 1000", func(j *job) {
				j.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
			})
			n.waitOutput(j, "ready")
			begin := time.Now()
			_, err := n.Exec(t.Context(), j.Id, []string{"true"}, true, keeper.Streams{})
			if !errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "/dev/pts") {
				t.Errorf("%v", err)
			}
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("it took %s", took)
			}
			n.wantNoExecCgroups(j)
		})
	}
}

// Execs do not depend on the container's /proc: they have the right groups, label, oom_score_adj
// and terminal.
func TestExecAsksNothingOfTheContainersProc(t *testing.T) {
	n := newNode(t)
	ids := []*api.IDMapping{{HostId: 1 << 20, Length: 5000}}
	box := n.sandbox(func(req *api.CreateSandboxRequest) { req.UidMappings, req.GidMappings = ids, ids })
	caps := []string{"CAP_SYS_ADMIN"}
	j := n.run(box, "mount -t tmpfs x /proc && mkdir /proc/self && echo deny >/proc/self/setgroups && ln -s / /proc/self/fd && echo ready; sleep 1000", func(j *job) {
		j.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		n.must(os.Chown(j.Rootfs.Upperdir, 1<<20, 1<<20))
	})
	n.waitOutput(j, "ready")
	body, err := os.ReadFile(filepath.Join(j.Bundle, "config.json"))
	n.must(err)
	n.must(os.WriteFile(filepath.Join(j.Bundle, "config.json"), []byte(strings.Replace(string(body), `"user":{"uid":0,"gid":0}`, `"user":{"uid":1000,"gid":1001,"additionalGids":[7]}`, 1)), 0o600))
	const want = "uid=1000 gid=1001 groups=7\n"
	if _, out, _ := n.exec(j, "id"); out != want {
		t.Errorf("%q", out)
	}
	if _, out := n.execOnTerminal(j, "id; stat -c %u /dev/pts/0"); out != strings.ReplaceAll(want+"1000\n", "\n", "\r\n") {
		t.Errorf("on a terminal: %q", out)
	}
	if n.forkServer() == 0 {
		t.Error("there is no fork server")
	}
}

// When its session leader exits, a terminal hangs up: the remaining processes are signalled, and
// the terminal is removed.
func TestTerminalHangsUp(t *testing.T) {
	n := newNode(t)
	for _, way := range []func(*job){func(*job) {}, byLibcontainer} {
		j := n.run(n.sandbox(), "while sleep 0.1; do :; done", way) // it reaps
		code, out := n.execOnTerminal(j, "sleep 4350 & (trap '' HUP; until [ -e /tmp/ended ]; do sleep 0.1; done; echo too late; echo $? >/tmp/late) & sleep 0.2; ls /dev/pts; exit 21")
		if code != 21 || out != "0     ptmx\r\n" {
			t.Errorf("%d %q", code, out)
		}
		n.exec(j, "touch /tmp/ended")
		n.wantNoProcess(j, "4350")
		if !eventually(func() bool { _, out, _ = n.exec(j, "cat /tmp/late; ls /dev/pts"); return out == "1\nptmx\n" }) {
			t.Errorf("after the end: %q", out)
		}
		// A leader that is killed by a signal hangs up, too.
		if code, _ := n.execOnTerminal(j, "sleep 4351 & kill -9 $$"); code != 128+9 {
			t.Errorf("killed: %d", code)
		}
		n.wantNoProcess(j, "4351")
		n.wantNoExecCgroups(j)
	}
}

// CVE-2024-21626: no descriptor of the host can be a working directory.
func TestExecEntersNoDirectoryOfTheHost(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	for fd := range 12 {
		// The init's descriptor may be a directory. The execs have their own files at that number.
		j := n.run(box, "sleep 1000", func(j *job) {
			n.must(os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), filepath.Join(j.Rootfs.Upperdir, "dir")))
			j.spec.Process.Cwd = "/tmp"
		})
		body, err := os.ReadFile(filepath.Join(j.Bundle, "config.json"))
		n.must(err)
		n.must(os.WriteFile(filepath.Join(j.Bundle, "config.json"), []byte(strings.Replace(string(body), `"cwd":"/tmp"`, `"cwd":"/dir"`, 1)), 0o600))
		if _, err := n.Exec(t.Context(), j.Id, []string{"pwd"}, false, keeper.Streams{}); !errors.Is(err, fault.Invalid) && !errors.Is(err, fault.Precondition) {
			t.Errorf("descriptor %d: %v", fd, err)
		}
		n.must(n.Delete(t.Context(), j.Id))
	}
}

// forkServer returns the pid of the keeper's fork server, or 0.
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

// Execs do not make the keeper grow and leave nothing behind.
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
		time.Sleep(2500 * time.Millisecond) // the keeper returns free memory
	}
	run(200)
	before, descriptors := memory(t, int(info.Pid)), n.descriptors()
	run(1000)
	if grown := memory(t, int(info.Pid)) - before; grown > 1024 && !raceDetector {
		t.Errorf("the keeper has grown by %d KB", grown)
	}
	t.Logf("the fork server takes %d KB, the keeper %d KB", memory(t, n.forkServer()), memory(t, int(info.Pid)))
	if !eventually(func() bool { return n.descriptors() <= descriptors }) { // it may be reading a file just now
		t.Errorf("%d descriptors became %d", descriptors, n.descriptors())
	}
	n.wantNoExecCgroups(j)
	if left := zombies(int(info.Pid)); len(left) > 0 {
		t.Errorf("zombies: %v", left)
	}
}

// The error says that the container has reached its process limit.
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

// A container exits while execs start in it. They report that, whichever step failed. Started ones
// end with the container, by its SIGKILL.
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
