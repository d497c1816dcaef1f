package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

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
		if _, err := n.Exec(t.Context(), j.Id, []string{"/tmp/text"}, false, keeper.Streams{}); i == 0 &&
			!errors.Is(err, fault.Invalid) {
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
	// the keeper's program, without its arguments
	n.Exec(t.Context(), j.Id, []string{"/tmp/trap"}, false, keeper.Streams{})
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
				p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps,
					Ambient: caps}
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
	n.must(os.WriteFile(filepath.Join(j.Bundle, "config.json"), []byte(strings.Replace(string(body),
		`"user":{"uid":0,"gid":0}`, `"user":{"uid":1000,"gid":1001,"additionalGids":[7]}`, 1)), 0o600))
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
		code, out := n.execOnTerminal(j,
			"sleep 4350 & (trap '' HUP; until [ -e /tmp/ended ]; do sleep 0.1; done; echo too late; echo $? >/tmp/late) & sleep 0.2; ls /dev/pts; exit 21")
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
		n.must(os.WriteFile(filepath.Join(j.Bundle, "config.json"),
			[]byte(strings.Replace(string(body), `"cwd":"/tmp"`, `"cwd":"/dir"`, 1)), 0o600))
		if _, err := n.Exec(t.Context(), j.Id, []string{"pwd"}, false, keeper.Streams{}); !errors.Is(err, fault.Invalid) &&
			!errors.Is(err, fault.Precondition) {
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
	few, many, becomesIdle := 200, 1000, 2500*time.Millisecond // the keeper returns free memory
	// With the race detector its memory says nothing.
	if raceDetector {
		few, many, becomesIdle = 40, 200, 0
	}
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
		time.Sleep(becomesIdle)
	}
	run(few)
	before, descriptors := memory(t, int(info.Pid)), n.descriptors()
	run(many)
	grown := func() int { return memory(t, int(info.Pid)) - before }
	if !raceDetector && !eventually(func() bool { return grown() <= 1024 }) { // on a busy node it is later
		t.Errorf("the keeper has grown by %d KB", grown())
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
	j := n.run(n.sandbox(), "exec sleep 1000",
		func(j *job) { j.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: &limit} })
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

func TestExec(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, "sleep 1000", func(j *job) {
		j.spec.Process.User = specs.User{UID: 1000, GID: 1000}
		j.spec.Process.Env = append(j.spec.Process.Env, "COLOR=blue")
		j.spec.Process.Cwd = "/tmp"
	})
	x, stdout, stderr := n.exec(j,
		`echo $COLOR; pwd; id -u; grep -E 'NoNewPrivs|CapEff' /proc/self/status; echo err >&2; exit 5`)
	if x != 5 || stderr != "err\n" || stdout != "blue\n/tmp\n1000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\n" {
		t.Errorf("%d %q %q", x, stdout, stderr)
	}
	if x, _, _ = n.exec(j, "kill -9 $$"); x != 137 {
		t.Errorf("%d", x)
	}
	_, err := n.Exec(t.Context(), j.Id, []string{"nonesuch"}, false, keeper.Streams{})
	wantKind(t, err, fault.Invalid)
	t.Log(err)
	_, err = n.Exec(t.Context(), "nonesuch", []string{"true"}, false, keeper.Streams{})
	wantKind(t, err, fault.NotFound)

	x, stdout, stderr = n.exec(j, `head -c 40000000 /dev/zero; head -c 10 /dev/zero >&2; exit 6`)
	if x != 6 || len(stdout) != 40000000 || len(stderr) != 10 {
		t.Errorf("%d, %d and %d bytes", x, len(stdout), len(stderr))
	}
	n.wantNoExecCgroups(j)

	n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, false))
	n.wait(j)
	_, err = n.Exec(t.Context(), j.Id, []string{"true"}, false, keeper.Streams{})
	wantKind(t, err, fault.Precondition)
}

func TestExecTimeoutKillsTheTree(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	// An init that reaps orphans.
	j := n.run(box, `while :; do sleep 0.1; done`)
	script := `sleep 4321 & setsid sleep 4322 & (sleep 4323 & ) ; (setsid sh -c 'sleep 4324 & sleep 4325' &) ; echo started; sleep 4326`
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	var stdout bytes.Buffer
	_, err := n.Exec(ctx, j.Id, []string{"/bin/sh", "-c", script}, false, keeper.Streams{Stdout: &stdout})
	if !errors.Is(err, context.DeadlineExceeded) || stdout.String() != "started\n" {
		t.Errorf("%v %q", err, &stdout)
	}
	if took := time.Since(start); took < 500*time.Millisecond || took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	n.wantNoProcess(j, "432")
	n.wantNoExecCgroups(j)
}

func TestExecIsNotDelayedByABackgroundChild(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, `while :; do sleep 0.1; done`)
	start := time.Now()
	x, stdout, _ := n.exec(j, `sleep 4330 & echo here; exit 4`)
	if took := time.Since(start); x != 4 || stdout != "here\n" || took > 20*time.Second {
		t.Errorf("%d %q after %s", x, stdout, took)
	}
	_, ps, _ := n.exec(j, "ps")
	if !strings.Contains(ps, "sleep 4330") {
		t.Errorf("the child was killed: %s", ps)
	}
	n.wantNoExecCgroups(j)
}
