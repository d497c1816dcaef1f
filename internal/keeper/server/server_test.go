package server_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	exit, out := n.finish(box, `tty; echo err >&2; test -t 0 && test -t 2`,
		func(j *job) { j.Tty, j.spec.Process.Terminal = true, true })
	if exit.Code != 0 || out != "/dev/pts/0\r\nerr\r\n" {
		t.Errorf("exit %+v, output %q", exit, out)
	}
	j := n.run(box, "sleep 1000")
	var stdout bytes.Buffer
	code, err := n.Exec(t.Context(), j.Id, []string{"sh", "-c", "tty; echo err >&2"}, true,
		keeper.Streams{Stdout: &stdout})
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
			j.spec.Mounts = append(j.spec.Mounts, specs.Mount{Destination: "/x", Source: "/nonexistent", Type: "bind",
				Options: []string{"rbind"}})
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
			j.spec.Mounts = append(j.spec.Mounts, specs.Mount{Destination: "/vol", Source: volume, Type: "bind",
				Options: []string{"rbind", mode}})
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
	if _, out := n.finish(box, "ls -d /here",
		func(j *job) { j.Rootfs.Lowerdirs = append([]string{awkward}, n.layers...) }); out != "/here\n" {
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
	if len(list.Containers) != 1 || list.Containers[0].Exit.GetCode() != 9 || len(list.Sandboxes) != 1 ||
		list.Sandboxes[0].Id != box.Id {
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
	if err := n.Update(t.Context(),
		&api.UpdateRequest{Id: "unknown", Resources: []byte("{}")}); fault.Of(err) != fault.NotFound {
		t.Error(err)
	}
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, true))
	n.wait(j)
	wantKind(t, update(`{}`, nil), fault.Precondition)
}
