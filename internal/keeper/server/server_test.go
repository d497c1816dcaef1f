package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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

func TestContainerRunsAndIsGone(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.job(box, "echo hello; echo oops >&2; hostname; exit 7")
	c, err := n.Create(t.Context(), j.CreateRequest)
	n.must(err)
	if c.State != api.State_CREATED || c.Pid == 0 || c.CreatedAt == 0 || c.StartedAt != 0 {
		t.Errorf("created: %+v", c)
	}
	if again, err := n.Create(t.Context(), j.CreateRequest); err != nil || again.Pid != c.Pid {
		t.Errorf("created again: %+v, %v", again, err)
	}
	if mounts := n.mounts(); len(mounts) != 1 {
		t.Errorf("the host's mount table has more than the keeper's one mount:\n%s", strings.Join(mounts, "\n"))
	}
	_, err = n.Start(t.Context(), j.Id)
	n.must(err)
	c = n.wait(j)
	if c.Exit.Code != 7 || c.Exit.OomKilled || c.StartedAt == 0 || c.Exit.FinishedAt < c.StartedAt {
		t.Errorf("exit %+v of %+v", c.Exit, c)
	}
	out := strings.Split(strings.TrimSpace(n.output(j)), "\n")
	slices.Sort(out)
	if !slices.Equal(out, []string{"hello", "oops", "web"}) {
		t.Errorf("output %q", out)
	}
	record, err := keeper.ReadExit(j.Bundle)
	if err != nil || record.Code != 7 || record.FinishedAt != c.Exit.FinishedAt || record.StartedAt != c.StartedAt {
		t.Errorf("record %+v, %v", record, err)
	}
	// A repeated operation succeeds; an impossible one is a Precondition error.
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGTERM, false))
	_, err = n.Start(t.Context(), j.Id)
	wantKind(t, err, fault.Precondition)
	wantKind(t, n.ReopenLog(t.Context(), j.Id), fault.Precondition)
	wantKind(t, n.RemoveSandbox(t.Context(), box.Id), fault.Precondition)
	n.must(n.Delete(t.Context(), j.Id))
	n.must(n.Delete(t.Context(), j.Id))
	n.must(n.RemoveSandbox(t.Context(), box.Id))
	n.must(n.RemoveSandbox(t.Context(), box.Id))
	wantKind(t, n.Signal(t.Context(), j.Id, syscall.SIGTERM, false), fault.NotFound)
	if list, err := n.List(t.Context()); err != nil || len(list.Containers)+len(list.Sandboxes) != 0 {
		t.Errorf("list %+v, %v", list, err)
	}
	// The mount points on the host are empty directories, and have been removed.
	if left, err := filepath.Glob(filepath.Join(n.state, "mounts/[0-9a-f]*")); err != nil || len(left) > 0 {
		t.Errorf("mounts: %v, %v", left, err)
	}
}

func TestSignals(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, `trap 'echo got term; exit 3' TERM; echo up; while :; do sleep 0.05; done`)
	n.waitOutput(j, "up")
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGTERM, false))
	if c := n.wait(j); c.Exit.Code != 3 {
		t.Errorf("exit %+v", c.Exit)
	}
	j = n.run(box, "sleep 1000")
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, true))
	if c := n.wait(j); c.Exit.Code != 137 || c.Exit.OomKilled {
		t.Errorf("exit %+v", c.Exit)
	}
	wantKind(t, n.Signal(t.Context(), j.Id, 0, false), fault.Invalid)

	// Killed at its start line.
	j = n.job(box, "true")
	_, err := n.Create(t.Context(), j.CreateRequest)
	n.must(err)
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, false))
	if c := n.wait(j); c.Exit.Code != 137 || c.StartedAt != 0 {
		t.Errorf("exit %+v", c)
	}
	_, err = n.Start(t.Context(), j.Id)
	wantKind(t, err, fault.Precondition)
}

func TestLogFormat(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	long := strings.Repeat("x", 40000)
	j := n.run(box, `printf 'one\n\ntwo\n'; head -c 40000 /dev/zero | tr '\0' x; echo; printf 'no end'`)
	n.wait(j)
	if got, want := n.output(j), "one\n\ntwo\n"+long+"\nno end"; got != want {
		t.Errorf("output of %d bytes, want %d: %.60q…", len(got), len(want), got)
	}
	body, err := os.ReadFile(j.LogPath)
	n.must(err)
	var tags []string
	for line := range strings.Lines(string(body)) {
		parts := strings.SplitN(line, " ", 4)
		tags = append(tags, parts[1]+" "+parts[2])
		if len(parts[3]) > 16384+1 {
			t.Errorf("a part of %d bytes", len(parts[3]))
		}
	}
	want := []string{"stdout F", "stdout F", "stdout F", "stdout P", "stdout P", "stdout F", "stdout P"}
	if !slices.Equal(tags, want) {
		t.Errorf("tags %q", tags)
	}
	if st, err := os.Stat(j.LogPath); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("log %v, %v", st.Mode(), err)
	}
}

func TestLogRotation(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, `i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done`)
	n.waitOutput(j, "3\n")
	n.must(os.Rename(j.LogPath, j.LogPath+".1"))
	n.must(n.ReopenLog(t.Context(), j.Id))
	n.waitOutput(j, "\n")
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, false))
	n.wait(j)
	second := n.output(j)
	j.LogPath += ".1"
	var want strings.Builder
	first := n.output(j)
	for i := range strings.Count(first+second, "\n") {
		fmt.Fprintln(&want, i)
	}
	if first+second != want.String() || first == "" || second == "" {
		t.Errorf("lines lost: %q then %q", first, second)
	}
}

func TestLogNeedsAFileOfItsOwn(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	target := filepath.Join(t.TempDir(), "victim")
	j := n.job(box, "echo x")
	n.must(os.Symlink(target, j.LogPath))
	_, err := n.Create(t.Context(), j.CreateRequest)
	wantKind(t, err, fault.Invalid)
	if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the symlink was followed: %v", err)
	}
	j = n.job(box, "echo x")
	n.must(unix.Mkfifo(j.LogPath, 0o600))
	_, err = n.Create(t.Context(), j.CreateRequest)
	wantKind(t, err, fault.Precondition) // without a reader, the open itself fails
	j = n.job(box, "echo x", func(j *job) { j.LogPath = "/nonexistent/dir/0.log" })
	_, err = n.Create(t.Context(), j.CreateRequest)
	wantKind(t, err, fault.Precondition)
}

func TestFullDiskBlocksNobody(t *testing.T) {
	n := newNode(t)
	small := t.TempDir()
	n.must(unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"))
	defer unix.Unmount(small, unix.MNT_DETACH)
	box := n.sandbox()
	j := n.run(box, `i=0; while [ $i -lt 20000 ]; do echo "line $i"; i=$((i+1)); done; echo done >&2; touch /tmp/through; sleep 1000`,
		func(j *job) { j.LogPath = filepath.Join(small, "0.log") })
	through := filepath.Join(j.Rootfs.Upperdir, "tmp/through")
	if !eventually(func() bool { _, err := os.Stat(through); return err == nil }) {
		t.Fatal("the application is held up")
	}
	// There is space again: after a rotation, logging continues. The output still in the pipe may
	// fill the disk once more.
	if !eventually(func() bool {
		n.must(os.Remove(j.LogPath))
		n.must(n.ReopenLog(t.Context(), j.Id))
		n.exec(j, "echo from the application >/proc/1/fd/1")
		for range 20 {
			if body, err := os.ReadFile(j.LogPath); err == nil && bytes.Contains(body, []byte(" F from the application\n")) {
				return true
			}
			time.Sleep(10 * time.Millisecond)
		}
		return false
	}) {
		t.Error("the log does not go on")
	}
}

func TestUserOpensItsStdout(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	exit, out := n.finish(box, `echo a >/dev/stdout; echo b >/dev/stderr; id -u; id -G`, func(j *job) {
		j.spec.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{2000}}
		j.spec.Process.Capabilities = &specs.LinuxCapabilities{}
	})
	for _, want := range []string{"a\n", "b\n", "1000\n", "1000 2000\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("exit %+v, output %q", exit, out)
		}
	}
}

func TestTerminal(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	exit, out := n.finish(box, `tty; echo err >&2; test -t 0 && test -t 2`, func(j *job) { j.Tty, j.spec.Process.Terminal = true, true })
	if exit.Code != 0 || out != "/dev/pts/0\r\nerr\r\n" {
		t.Errorf("exit %+v, output %q", exit, out)
	}
	j := n.run(box, "sleep 1000")
	var stdout bytes.Buffer
	code, err := n.Exec(t.Context(), j.Id, []string{"sh", "-c", "tty; echo err >&2"}, true, keeper.Streams{Stdout: &stdout})
	if err != nil || code != 0 || !strings.HasSuffix(stdout.String(), "err\r\n") {
		t.Errorf("exec %d %q %v", code, &stdout, err)
	}
}

func TestStdinIsKeptOpenOrEmpty(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	if exit, _ := n.finish(box, "cat"); exit.Code != 0 {
		t.Errorf("stdin is not /dev/null: %+v", exit)
	}
	j := n.run(box, "cat; echo over", func(j *job) { j.Stdin = true })
	time.Sleep(200 * time.Millisecond)
	if strings.Contains(n.output(j), "over") {
		t.Error("stdin was closed")
	}
}

func TestCreateThatFailsLeavesNothing(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	n.finish(box, "true") // libraries open some descriptors once
	fds := n.descriptors()
	for name, change := range map[string]func(*job){
		"no such program": func(j *job) { j.spec.Process.Args = []string{"nonesuch"} },
		"not executable":  func(j *job) { j.spec.Process.Args = []string{"/etc/passwd"} },
		"no such cwd":     func(j *job) { j.spec.Process.Cwd = "/etc/passwd/x" },
		"no layer":        func(j *job) { j.Rootfs.Lowerdirs = []string{"/nonexistent"} },
		"root elsewhere":  func(j *job) { j.spec.Root.Path = "/tmp/elsewhere" },
		"bad mount": func(j *job) {
			j.spec.Mounts = append(j.spec.Mounts, specs.Mount{Destination: "/x", Source: "/nonexistent", Type: "bind", Options: []string{"rbind"}})
		},
		"bad limit":        func(j *job) { j.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NONE"}} },
		"no bundle":        func(j *job) { j.Bundle = "" },
		"unknown pod":      func(j *job) { j.SandboxId = "nonesuch" },
		"hostile id":       func(j *job) { j.Id = "../../x" },
		"terminal differs": func(j *job) { j.Tty = true },
	} {
		j := n.job(box, "true", change)
		if c, err := n.Create(t.Context(), j.CreateRequest); err == nil {
			t.Errorf("%s: created %+v", name, c)
		} else {
			t.Logf("%s: %s: %v", name, fault.Of(err), err)
			if fault.Of(err) == "" {
				t.Errorf("%s: an error without a kind", name)
			}
		}
		if found, _ := filepath.Glob("/sys/fs/cgroup/*" + n.cgroup + "/" + j.Id); len(found) > 0 {
			t.Errorf("%s: left %v", name, found)
		}
		if _, err := os.Stat(filepath.Join(n.state, "mounts/.oci", j.Id)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the runtime's records are left: %v", name, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(n.state, "mounts/[0-9a-f]*")); len(left) != 1 {
		t.Errorf("left in mounts: %v", left)
	}
	if !eventually(func() bool { return n.descriptors() <= fds }) {
		t.Errorf("%d descriptors, %d before", n.descriptors(), fds)
	}
}

func TestOOM(t *testing.T) {
	if v2, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil && !bytes.Contains(v2, []byte("memory")) {
		t.Skip("SKIP: cgroup v2 without the memory controller")
	}
	n := newNode(t)
	box := n.sandbox()
	limit := int64(32 << 20)
	exit, _ := n.finish(box, `x=a; while :; do x=$x$x; done`, func(j *job) {
		j.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	})
	if !exit.OomKilled || exit.Code != 137 {
		t.Errorf("exit %+v", exit)
	}

	// A child is killed and the first process continues.
	const child = `(echo 1000 >/proc/self/oom_score_adj; x=a; while :; do x=$x$x; done); echo child $?; `
	limited := func(j *job) { j.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit} }
	for _, c := range []struct {
		then   string
		code   int32
		killed bool
	}{
		{"exit 0", 0, false}, // it survived the OOM kill
		{"exit 3", 3, true},
		{"trap 'exit 4' TERM; kill -TERM $$; exit 5", 4, true}, // it ended itself
	} {
		exit, out := n.finish(box, child+c.then, limited)
		if !strings.Contains(out, "child 137") {
			t.Errorf("the child was not killed: %q", out)
		}
		if exit.Code != c.code || exit.OomKilled != c.killed {
			t.Errorf("%s: %+v", c.then, exit)
		}
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		j := n.run(box, `trap 'exit 4' TERM; `+child+`while :; do sleep 0.1; done`, limited)
		n.waitOutput(j, "child 137")
		n.must(n.Signal(t.Context(), j.Id, sig, sig == syscall.SIGKILL))
		if exit := n.wait(j).Exit; exit.OomKilled || exit.Code == 0 {
			t.Errorf("asked to end with signal %d: %+v", sig, exit)
		}
		n.must(n.Delete(t.Context(), j.Id))
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
	x, stdout, stderr := n.exec(j, `echo $COLOR; pwd; id -u; grep -E 'NoNewPrivs|CapEff' /proc/self/status; echo err >&2; exit 5`)
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

func TestPodInit(t *testing.T) {
	n := newNode(t)
	box := n.sandbox(func(r *api.CreateSandboxRequest) {
		r.Pid, r.CgroupsPath, r.OomScoreAdj = true, n.cgroup+"/init", 500
	})
	if box.InitPid == 0 || box.Namespaces["pid"] == "" {
		t.Fatalf("%+v", box)
	}
	proc := fmt.Sprintf("/proc/%d/", box.InitPid)
	if body, _ := os.ReadFile(proc + "oom_score_adj"); strings.TrimSpace(string(body)) != "500" {
		t.Errorf("oom_score_adj %q", body)
	}
	status, _ := os.ReadFile(proc + "status")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Uid:\t65535", "Name:\tkuri-init"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in %s", want, status)
		}
	}
	if cg, _ := os.ReadFile(proc + "cgroup"); !strings.Contains(string(cg), n.cgroup+"/init") {
		t.Errorf("cgroup %s", cg)
	}
	if root, err := os.ReadDir(proc + "root"); err != nil || len(root) != 1 || root[0].Name() != "proc" {
		t.Errorf("its root: %v, %v", root, err)
	}
	smaps, _ := os.ReadFile(proc + "smaps_rollup")
	t.Logf("memory of the pod's init:\n%s", smaps)

	a := n.run(box, "sleep 4340")
	b := n.run(box, `(sleep 0.1; exit 3) & exec sh -c 'setsid sleep 0.2 & ps; sleep 0.5; ps'`)
	c := n.wait(b)
	out := n.output(b)
	if c.Exit.Code != 0 || !strings.Contains(out, "sleep 4340") || !strings.Contains(out, "kuri-init") {
		t.Errorf("exit %+v, output %s", c.Exit, out)
	}
	// Processes that b left behind are killed with its cgroup and reaped by the init: no zombies.
	_, ps, _ := n.exec(a, "ps -o pid,stat,args")
	if strings.Contains(ps, "Z") {
		t.Errorf("zombies: %s", ps)
	}
	// When a container without a private PID namespace exits, its children are killed.
	b = n.run(box, "setsid sleep 4341 & exit 0")
	n.wait(b)
	n.wantNoProcess(a, "4341")
}

func TestHostPIDOrphansAreReaped(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, `setsid sh -c 'sleep 0.1 & sleep 0.1 & exit 0' & sleep 4350`, func(j *job) {
		j.spec.Linux.Namespaces = slices.DeleteFunc(j.spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
		// /proc of the host's PID namespace.
		j.spec.Mounts[0] = specs.Mount{Destination: "/proc", Type: "bind", Source: "/proc", Options: []string{"rbind", "ro"}}
	})
	info, err := n.Info(t.Context())
	n.must(err)
	time.Sleep(300 * time.Millisecond) // until the orphans have exited
	if !eventually(func() bool { return len(zombies(int(info.Pid))) == 0 }) {
		t.Errorf("zombies are left: %v", zombies(int(info.Pid)))
	}
	x, _, _ := n.exec(j, "setsid sleep 4351 & exit 0")
	if x != 0 {
		t.Errorf("%+v", x)
	}
	if !eventually(func() bool { return len(n.processes("4351")) == 1 }) {
		t.Error("what the exec has left behind is not there")
	}
	n.must(n.Delete(t.Context(), j.Id))
	if pids := n.processes("4351"); len(pids) > 0 {
		t.Errorf("processes are left: %v", pids)
	}
}

func TestSharedNamespacesAndShm(t *testing.T) {
	n := newNode(t)
	box := n.sandbox(func(r *api.CreateSandboxRequest) { r.ShmBytes = 8 << 20 })
	a := n.run(box, "sleep 1000")
	n.exec(a, "echo shared >/dev/shm/note")
	exit, out := n.finish(box, `cat /dev/shm/note; stat -c %a /dev/shm; df -k /dev/shm | tail -1; ip -o link; grep -c . /proc/self/mountinfo`)
	for _, want := range []string{"shared\n", "1777\n", "8192", "LOOPBACK,UP"} {
		if !strings.Contains(out, want) {
			t.Errorf("exit %+v: no %q in %s", exit, want, out)
		}
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		_, inner, _ := n.exec(a, "readlink /proc/self/ns/"+kind)
		outer, _ := os.Readlink("/proc/self/ns/" + kind)
		if strings.TrimSpace(inner) == outer || inner == "" {
			t.Errorf("%s namespace is the host's: %q", kind, inner)
		}
	}
	if _, err := os.Stat("/run/netns/kuri-" + box.Id); err != nil {
		t.Error(err)
	}
	again, err := n.CreateSandbox(t.Context(), &api.CreateSandboxRequest{Id: box.Id})
	if err != nil || again.Namespaces["ipc"] != box.Namespaces["ipc"] {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestSysctls(t *testing.T) {
	n := newNode(t)
	box := n.sandbox(func(r *api.CreateSandboxRequest) {
		r.Uts = true
		r.Sysctls = map[string]string{
			"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "net/ipv4/ip_unprivileged_port_start": "80", "kernel.domainname": "lab.test",
			"net.ipv4.conf.eth9.forwarding": "1", // left to the caller
		}
		r.DefaultSysctls = map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647",
			"net.ipv4.ip_local_port_range": "wrong", "net.no.such.thing": "1", // only logged
		}
	})
	_, out := n.finish(box, "cd /proc/sys; cat net/ipv4/ip_forward kernel/shm_rmid_forced net/ipv4/ip_unprivileged_port_start kernel/domainname net/ipv4/ping_group_range")
	if out != "1\n1\n80\nlab.test\n0\t2147483647\n" {
		t.Errorf("output %q", out)
	}
	for name, change := range map[string]func(*api.CreateSandboxRequest){
		"vm.swappiness":          func(*api.CreateSandboxRequest) {},
		"kernel.shm_rmid_forced": func(r *api.CreateSandboxRequest) { r.Ipc, r.ShmBytes = false, 0 },
		"net.ipv4.ip_forward":    func(r *api.CreateSandboxRequest) { r.Network = false },
		"kernel.domainname":      func(*api.CreateSandboxRequest) {},
		"fs.mqueue.none":         func(*api.CreateSandboxRequest) {},
		"net/../../etc/passwd":   func(*api.CreateSandboxRequest) {},
	} {
		id := newID()
		req := &api.CreateSandboxRequest{Id: id, Network: true, Ipc: true, NetnsPath: "/run/netns/kuri-" + id, Sysctls: map[string]string{name: "1"}}
		change(req)
		_, err := n.CreateSandbox(t.Context(), req)
		wantKind(t, err, fault.Invalid)
		if err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
		if _, err := os.Stat("/run/netns/kuri-" + id); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the network namespace is left", name)
		}
	}
}

func TestVolumesPropagate(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	volume := t.TempDir()
	n.must(unix.Mount("tmpfs", volume, "tmpfs", 0, ""))
	defer unix.Unmount(volume, unix.MNT_DETACH)
	n.must(unix.Mount("", volume, "", unix.MS_SHARED, ""))
	n.must(os.Mkdir(filepath.Join(volume, "in"), 0o755))
	n.must(os.Mkdir(filepath.Join(volume, "out"), 0o755))
	with := func(mode string) func(*job) {
		return func(j *job) {
			j.spec.Mounts = append(j.spec.Mounts, specs.Mount{Destination: "/vol", Source: volume, Type: "bind", Options: []string{"rbind", mode}})
			j.spec.Linux.RootfsPropagation = mode
			caps := &j.spec.Process.Capabilities
			all := append((*caps).Bounding, "CAP_SYS_ADMIN")
			*caps = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
		}
	}
	hostSees := func(what string) bool {
		body, err := os.ReadFile("/proc/self/mountinfo")
		n.must(err)
		return strings.Contains(string(body), filepath.Join(volume, what)+" ")
	}

	j := n.run(box, "mount -t tmpfs x /vol/out && echo mounted; sleep 1000", with("rshared"))
	n.waitOutput(j, "mounted")
	if !hostSees("out") {
		t.Error("rshared: a mount in the container does not reach the host")
	}
	n.must(n.Delete(t.Context(), j.Id))
	n.must(unix.Unmount(filepath.Join(volume, "out"), unix.MNT_DETACH))

	for _, mode := range []string{"rslave", "rprivate"} {
		j = n.run(box, "mount -t tmpfs x /vol/out && echo mounted; sleep 1000", with(mode))
		n.waitOutput(j, "mounted")
		if hostSees("out") {
			t.Errorf("%s: a mount in the container reaches the host", mode)
		}
		n.must(unix.Mount("tmpfs", filepath.Join(volume, "in"), "tmpfs", 0, ""))
		n.must(os.WriteFile(filepath.Join(volume, "in/new"), nil, 0o644))
		_, out, _ := n.exec(j, "ls /vol/in")
		if (out == "new\n") != (mode == "rslave") {
			t.Errorf("%s: the container sees %q of a mount on the host", mode, out)
		}
		n.must(n.Delete(t.Context(), j.Id))
		n.must(unix.Unmount(filepath.Join(volume, "in"), unix.MNT_DETACH))
	}
}

func TestManyLayers(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	root := t.TempDir()
	var layers []string
	for i := range 126 {
		dir := filepath.Join(root, strings.Repeat("f", 60)+strconv.Itoa(i), "fs")
		n.must(os.MkdirAll(filepath.Join(dir, "layers"), 0o755))
		n.must(os.WriteFile(filepath.Join(dir, "layers", strconv.Itoa(i)), nil, 0o644))
		layers = append(layers, dir)
	}
	exit, out := n.finish(box, "ls /layers | wc -l", func(j *job) { j.Rootfs.Lowerdirs = append(layers, n.layers...) })
	if exit.Code != 0 || out != "126\n" {
		t.Errorf("%+v %q", exit, out)
	}
	awkward := filepath.Join(root, `a:b,c\d`)
	n.must(os.MkdirAll(filepath.Join(awkward, "here"), 0o755))
	if _, out := n.finish(box, "ls -d /here", func(j *job) { j.Rootfs.Lowerdirs = append([]string{awkward}, n.layers...) }); out != "/here\n" {
		t.Errorf("%q", out)
	}
}

func TestSecondKeeperIsRefused(t *testing.T) {
	n := newNode(t)
	info, err := n.Info(t.Context())
	n.must(err)
	// A second client finds the first keeper.
	c, err := keeper.Start(t.Context(), keeper.Options{Program: program, StateDir: n.state})
	n.must(err)
	defer c.Close()
	if again, err := c.Info(t.Context()); err != nil || again.Pid != info.Pid {
		t.Errorf("%+v, %v", again, err)
	}
	out := runProgram(t, "--state", n.state)
	if !strings.Contains(out, strconv.Itoa(int(info.Pid))) {
		t.Errorf("the error does not name pid %d: %s", info.Pid, out)
	}
	// SIGTERM does not end a keeper that holds a pod.
	n.sandbox()
	n.must(unix.Kill(int(info.Pid), syscall.SIGTERM))
	time.Sleep(100 * time.Millisecond)
	if again, err := n.Info(t.Context()); err != nil || again.Pid != info.Pid {
		t.Errorf("%+v, %v", again, err)
	}
	if cg, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", info.Pid)); !strings.Contains(string(cg), "kuri-keeper-") {
		t.Errorf("the keeper's cgroup: %s", cg)
	}
}

func TestClientRedials(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, "sleep 0.3; exit 9")
	// After a restart kurid gets the events that it missed.
	n.Close()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := keeper.ReadExit(j.Bundle); err == nil {
			break
		}
	}
	c, err := keeper.Start(t.Context(), keeper.Options{Program: program, StateDir: n.state})
	n.must(err)
	n.Client = c
	list, err := c.List(t.Context())
	n.must(err)
	if len(list.Containers) != 1 || list.Containers[0].Exit.GetCode() != 9 || len(list.Sandboxes) != 1 || list.Sandboxes[0].Id != box.Id {
		t.Errorf("%+v", list)
	}
	if record, err := keeper.ReadExit(j.Bundle); err != nil || record.Code != 9 {
		t.Errorf("%+v, %v", record, err)
	}
}

func TestEventsWaitAndTellWhatIsLost(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	info, err := n.Info(t.Context())
	n.must(err)
	start, before := time.Now(), info.LastEvent
	resp, err := n.Events(t.Context(), before, 200*time.Millisecond)
	if err != nil || len(resp.Events) > 0 || resp.Lost || time.Since(start) < 200*time.Millisecond {
		t.Errorf("%+v, %v after %s", resp, err, time.Since(start))
	}
	n.finish(box, "true")
	resp, err = n.Events(t.Context(), before, time.Second)
	if err != nil || len(resp.Events) != 1 || resp.Lost || resp.Events[0].Seq != before+1 {
		t.Errorf("%+v, %v", resp, err)
	}
	for _, other := range []uint64{0, 77, before - 1, before + 77} {
		if resp, err = n.Events(t.Context(), other, time.Second); err != nil || !resp.Lost || len(resp.Events) != 1 {
			t.Errorf("number %d, from another keeper: %+v, %v", other, resp, err)
		}
	}
}

// TestHundredContainers prints the cost of starting and holding containers. It does not check the
// figures.
func TestHundredContainers(t *testing.T) {
	n := newNode(t)
	info, err := n.Info(t.Context())
	n.must(err)
	warm := n.run(n.sandbox(), "sleep 1000")
	n.exec(warm, "true") // the fork server exists from now on
	n.must(n.Delete(t.Context(), warm.Id))
	time.Sleep(3 * time.Second) // let the keeper become idle
	fds, before, cpuBefore := n.descriptors(), memory(t, int(info.Pid)), cpu(t, int(info.Pid))

	const count = 100
	jobs := make([]*job, count)
	var makeBox, create, start []time.Duration
	for i := range jobs {
		t0 := time.Now()
		box := n.sandbox()
		makeBox = append(makeBox, time.Since(t0))
		jobs[i] = n.job(box, "sleep 1000")
		t0 = time.Now()
		_, err := n.Create(t.Context(), jobs[i].CreateRequest)
		n.must(err)
		create = append(create, time.Since(t0))
		t0 = time.Now()
		_, err = n.Start(t.Context(), jobs[i].Id)
		n.must(err)
		start = append(start, time.Since(t0))
	}
	t.Logf("p50 of CreateSandbox %s, Create %s, Start %s", median(makeBox), median(create), median(start))
	time.Sleep(3 * time.Second)
	after := memory(t, int(info.Pid))
	t.Logf("keeper: %d KB, with %d pods %d KB: %.1f KB per pod; threads %d", before, count, after, float64(after-before)/count, threads(int(info.Pid)))

	var execs []time.Duration
	for range 20 {
		t0 := time.Now()
		n.exec(jobs[0], "true")
		execs = append(execs, time.Since(t0))
	}
	t.Logf("p50 of Exec %s", median(execs))

	t0 := time.Now()
	var wg sync.WaitGroup
	for _, j := range jobs {
		wg.Go(func() {
			if err := n.Delete(t.Context(), j.Id); err != nil {
				t.Error(err)
			}
			if err := n.RemoveSandbox(t.Context(), j.SandboxId); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d pods deleted at once in %s; CPU per pod from beginning to end %s", count, time.Since(t0), (cpu(t, int(info.Pid))-cpuBefore)/count)
	if !eventually(func() bool { return n.descriptors() <= fds }) {
		t.Errorf("%d descriptors, %d before", n.descriptors(), fds)
	}
	time.Sleep(3 * time.Second)
	t.Logf("keeper afterwards: %d KB, threads %d", memory(t, int(info.Pid)), threads(int(info.Pid)))
}

func TestManyAtOnce(t *testing.T) {
	n := newNode(t)
	const count = 30
	t0 := time.Now()
	made, cancel := context.WithCancel(t.Context())
	var lists, wg sync.WaitGroup
	lists.Go(func() { // as a daemon does at its start
		for made.Err() == nil {
			_, err := n.List(t.Context())
			n.must(err)
		}
	})
	for range count {
		wg.Go(func() {
			box := n.sandbox()
			exit, out := n.finish(box, "echo $$; exit 1")
			if exit.Code != 1 || out != "1\n" {
				t.Errorf("%+v %q", exit, out)
			}
			n.must(n.RemoveSandbox(t.Context(), box.Id))
		})
	}
	wg.Wait()
	cancel()
	lists.Wait()
	t.Logf("%d pods from beginning to end at once in %s", count, time.Since(t0))
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, "sleep 1000", func(j *job) {
		limit := int64(64 << 20)
		j.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	})
	update := func(resources string, score *int32) error {
		return n.Update(t.Context(), &api.UpdateRequest{Id: j.Id, Resources: []byte(resources), OomScoreAdj: score})
	}
	state := func() string {
		_, out, _ := n.exec(j, "cat /proc/1/oom_score_adj; grep Cpus_allowed_list /proc/1/status")
		return out
	}
	score := int32(55)
	n.must(update(`{"cpu":{"cpus":"0"},"memory":{"limit":33554432}}`, &score))
	want := "55\nCpus_allowed_list:\t0\n"
	if got := state(); got != want {
		t.Errorf("after an update: %q", got)
	}
	score = 66
	wantKind(t, update(`{"memory":{"limit":50331648},"cpu":{"cpus":"0-5000"}}`, &score), fault.Precondition)
	wantKind(t, update(`{"memory":{"limit":4096},"cpu":{"cpus":"0-1"}}`, &score), fault.Precondition)
	wantKind(t, update(`[]`, nil), fault.Invalid)
	if got := state(); got != want {
		t.Errorf("after updates that failed: %q", got)
	}
	if err := n.Update(t.Context(), &api.UpdateRequest{Id: "unknown", Resources: []byte("{}")}); fault.Of(err) != fault.NotFound {
		t.Error(err)
	}
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, true))
	n.wait(j)
	wantKind(t, update(`{}`, nil), fault.Precondition)
}
