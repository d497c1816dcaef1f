package holder

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

const source = "../../cmd/kuri-holder"

// build compiles the holder with the sanitizers, which end it at the first fault of memory or arithmetic. The directory is
// of a short name: a socket lies in it.
func build(t testing.TB) (program, state string) {
	t.Helper()
	state, err := os.MkdirTemp("", "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	program = filepath.Join(state, "kuri-holder")
	cc := exec.Command("cc", "-Wall", "-Wextra", "-Werror", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover", "-o", program, source+"/holder.c")
	if out, err := cc.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return program, state
}

// start starts the holder with a keeper that is a shell script, and returns a client when the holder serves.
func start(t testing.TB, script string) (c *Client, holder *exec.Cmd, state string) {
	t.Helper()
	program, state := build(t)
	c, holder = begin(t, program, state, script, nil)
	return c, holder, state
}

func begin(t testing.TB, program, state, script string, gate io.Reader) (*Client, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command(program, "--state", state, "--", "/bin/sh", "-c", script)
	cmd.Env = append(os.Environ(), "STATE="+state)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = gate, os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its keepers are in its process group
		cmd.Wait()
		if log, err := os.ReadFile(filepath.Join(state, "keeper.log")); t.Failed() && err == nil {
			t.Logf("keeper.log:\n%s", log)
		}
	})
	c := Connect(state)
	t.Cleanup(c.Close)
	eventually(t, "the holder serves", func() bool { _, err := c.Info(); return err == nil })
	return c, cmd
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("never: %s", what)
		}
	}
}

// keeperOf waits for a keeper other than old.
func keeperOf(t testing.TB, c *Client, old int) int {
	t.Helper()
	var info Info
	eventually(t, "a keeper other than "+strconv.Itoa(old)+" runs", func() bool {
		var err error
		info, err = c.Info()
		return err == nil && info.Keeper != 0 && info.Keeper != old
	})
	return info.Keeper
}

const idle = "exec sleep 1000"

// TestHeaderAgrees holds our numbers against those of the header.
func TestHeaderAgrees(t *testing.T) {
	text, err := os.ReadFile(source + "/protocol.h")
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, m := range regexp.MustCompile(`(?m)^#define HOLDER_(\w+) (\d+)`).FindAllStringSubmatch(string(text), -1) {
		got[m[1]] = m[2]
	}
	want := map[string]int{
		"VERSION": version, "INFO": opInfo, "PUT": opPut, "GET": opGet, "DROP": opDrop, "NAMES": opNames, "WATCH": opWatch,
		"EXITED": opExited, "FORGET": opForget, "RESTART": opRestart, "REEXEC": opReexec, "PROGRAM": opProgram,
		"NAME_MAX": nameMax, "ANSWER_MAX": answerMax, "CLIENTS_MAX": 32,
	}
	for name, value := range want {
		if got[name] != strconv.Itoa(value) {
			t.Errorf("%s is %d here and %q there", name, value, got[name])
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("not known here: %v", got)
	}
}

func TestDescriptorsAreHeldByName(t *testing.T) {
	c, _, _ := start(t, idle)
	keeperOf(t, c, 0)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Put("container/a/stdout", read); err != nil {
		t.Fatal(err)
	}
	read.Close()
	if _, err := write.WriteString("kept"); err != nil {
		t.Fatalf("the pipe is broken although the holder has its other end: %v", err)
	}
	write.Close()
	back, err := c.Get("container/a/stdout")
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if text, err := io.ReadAll(back); err != nil || string(text) != "kept" {
		t.Errorf("%q, %v", text, err)
	}

	other, _ := os.Open("/dev/null")
	defer other.Close()
	if err := c.Put("container/a/stdout", other); err != nil { // replaces
		t.Fatal(err)
	}
	if names, err := c.Names(); err != nil || !slices.Equal(names, []string{"container/a/stdout"}) {
		t.Errorf("%q, %v", names, err)
	}
	if err := c.Drop("container/a/stdout", "never/there"); err != nil {
		t.Error(err)
	}
	if _, err := c.Get("container/a/stdout"); !errors.Is(err, fault.NotFound) {
		t.Errorf("a dropped name: %v", err)
	}
	for _, name := range []string{"", "with space", "line\nbreak", strings.Repeat("x", nameMax+1)} {
		if err := c.Put(name, other); err == nil {
			t.Errorf("the name %q was taken", name)
		}
	}
}

// TestManyAtOnce puts more descriptors than are sent before the first answer is read. A bad name fails alone.
func TestManyAtOnce(t *testing.T) {
	c, _, _ := start(t, idle)
	files := make(map[string]*os.File)
	var want []string
	for i := range 3*pipelined + 1 {
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		name := fmt.Sprintf("many/%03d", i)
		if _, err := f.WriteString(name); err != nil {
			t.Fatal(err)
		}
		files[name], want = f, append(want, name)
	}
	files["a bad name"] = files[want[0]]
	if err := c.PutAll(files); err == nil || !strings.Contains(err.Error(), "a bad name") || strings.Contains(err.Error(), "many/") {
		t.Errorf("put them: %v", err)
	}
	if names, err := c.Names(); err != nil || !slices.Equal(slices.Sorted(slices.Values(names)), want) {
		t.Errorf("%q, %v", names, err)
	}
	for _, name := range want {
		f, err := c.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		content := make([]byte, len(name))
		if _, err := f.ReadAt(content, 0); err != nil || string(content) != name {
			t.Errorf("%s is %q, %v", name, content, err)
		}
		f.Close()
	}
	if err := c.Drop(want...); err != nil {
		t.Error(err)
	}
	if names, err := c.Names(); err != nil || len(names) > 0 {
		t.Errorf("after they were dropped: %q, %v", names, err)
	}
}

// TestManyNames needs several answers for the list, and looks whether descriptors are lost on either side.
func TestManyNames(t *testing.T) {
	c, _, _ := start(t, idle)
	null, _ := os.Open("/dev/null")
	defer null.Close()
	var want []string
	for i := range 500 {
		want = append(want, fmt.Sprintf("container/%064d/stdout", i))
		if err := c.Put(want[i], null); err != nil {
			t.Fatal(err)
		}
	}
	names, err := c.Names()
	slices.Sort(names)
	if err != nil || !slices.Equal(names, want) {
		t.Errorf("%d of %d names, %v", len(names), len(want), err)
	}
	info, _ := c.Info()
	before := descriptors(t, info.Pid)
	for _, name := range want {
		f, err := c.Get(name)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if now := descriptors(t, info.Pid); now != before {
		t.Errorf("the holder has %d descriptors after 500 gets, it had %d", now, before)
	}
	if err := c.Drop(want...); err != nil {
		t.Fatal(err)
	}
	if now := descriptors(t, info.Pid); now != before-500 {
		t.Errorf("the holder has %d descriptors after 500 drops, it had %d", now, before)
	}
}

func descriptors(t testing.TB, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestExitStatusOutlivesTheKeeper has a keeper that starts a process and is killed: the process ends afterwards, and the
// holder knows how.
func TestExitStatusOutlivesTheKeeper(t *testing.T) {
	c, _, state := start(t, `if [ ! -e $STATE/child ]; then (while [ ! -e $STATE/end ]; do sleep 0.01; done; exit 42) & echo $! >$STATE/new; mv $STATE/new $STATE/child; fi; exec sleep 1000`)
	keeper := keeperOf(t, c, 0)
	var child int
	eventually(t, "the keeper has a child", func() bool {
		text, _ := os.ReadFile(state + "/child")
		child, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return child != 0
	})
	if _, _, err := c.Exited(child); !errors.Is(err, fault.NotFound) {
		t.Errorf("an exit of a process that is not watched: %v", err)
	}
	if err := c.Watch(child); err != nil {
		t.Fatal(err)
	}
	if err := c.RestartKeeper(); err != nil {
		t.Fatal(err)
	}
	keeperOf(t, c, keeper)
	if _, known, err := c.Exited(child); known || err != nil {
		t.Errorf("it has not exited: %v %v", known, err)
	}
	if err := os.WriteFile(state+"/end", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child has ended", func() bool {
		status, known, err := c.Exited(child)
		if known && status.ExitStatus() != 42 {
			t.Fatalf("exit status %d", status.ExitStatus())
		}
		return known && err == nil
	})
	if err := c.Forget(child); err != nil {
		t.Error(err)
	}
	if _, _, err := c.Exited(child); !errors.Is(err, fault.NotFound) {
		t.Errorf("after Forget: %v", err)
	}
}

// TestKeeperComesBack kills keepers by their pid; that takes longer and longer while they live shortly.
func TestKeeperComesBack(t *testing.T) {
	c, holder, _ := start(t, idle)
	null, _ := os.Open("/dev/null")
	defer null.Close()
	if err := c.Put("something", null); err != nil {
		t.Fatal(err)
	}
	keeper := 0
	for range 3 {
		keeper = keeperOf(t, c, keeper)
		if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	keeperOf(t, c, keeper)
	if holder.ProcessState != nil {
		t.Error("the holder has ended")
	}
}

// TestEnds has keepers that end: with 0 the holder ends too, and with an error when there is nothing to hold.
func TestEnds(t *testing.T) {
	for script, code := range map[string]int{"exit 0": 0, "exit 7": 7} {
		program, state := build(t)
		out, err := exec.Command(program, "--state", state, "--", "/bin/sh", "-c", "echo ready; "+script).CombinedOutput()
		var exit *exec.ExitError
		if got := 0; errors.As(err, &exit) {
			got = exit.ExitCode()
			if got != code {
				t.Errorf("%s: the holder's exit code is %d", script, got)
			}
		} else if err != nil || code != 0 {
			t.Errorf("%s: %v", script, err)
		}
		if string(out) != "ready\n" {
			t.Errorf("%s: the starter hears %q", script, out)
		}
		if _, err := os.Stat(state + "/holder.sock"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the socket has been left", script)
		}
	}
}

func TestSecondHolderIsRefused(t *testing.T) {
	c, _, state := start(t, idle)
	keeperOf(t, c, 0)
	info, _ := c.Info()
	out, err := exec.Command(state+"/kuri-holder", "--state", state, "--", "/bin/true").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "pid "+strconv.Itoa(info.Pid)) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := c.Info(); err != nil {
		t.Errorf("the first holder: %v", err)
	}
}

// TestGate hands a descriptor over before the keeper is started.
func TestGate(t *testing.T) {
	program, state := build(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	c, _ := begin(t, program, state, idle, read)
	null, _ := os.Open("/dev/null")
	defer null.Close()
	if err := c.Put("from/before", null); err != nil {
		t.Fatal(err)
	}
	if info, err := c.Info(); err != nil || info.Keeper != 0 {
		t.Errorf("a keeper runs before the gate has been opened: %+v %v", info, err)
	}
	write.Close()
	keeperOf(t, c, 0)
	if f, err := c.Get("from/before"); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
}

// TestReexec changes the program in place: pid, keeper, descriptors, watches and the listening socket stay.
func TestReexec(t *testing.T) {
	c, holder, state := start(t, idle)
	keeper := keeperOf(t, c, 0)
	read, write, _ := os.Pipe()
	defer write.Close()
	if err := c.Put("container/a/stdout", read); err != nil {
		t.Fatal(err)
	}
	read.Close()
	if err := c.Watch(keeper); err != nil {
		t.Fatal(err)
	}
	before := descriptors(t, holder.Process.Pid)
	for range 3 {
		if err := c.Reexec(""); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := c.Info(); err != nil || info.Pid != holder.Process.Pid || info.Keeper != keeper {
		t.Errorf("%+v, %v; it was %d with %d", info, err, holder.Process.Pid, keeper)
	}
	write.WriteString("kept")
	if f, err := c.Get("container/a/stdout"); err != nil {
		t.Error(err)
	} else {
		text := make([]byte, 4)
		io.ReadFull(f, text)
		if string(text) != "kept" {
			t.Errorf("%q", text)
		}
		f.Close()
	}
	if _, known, err := c.Exited(keeper); known || err != nil {
		t.Errorf("%v %v", known, err)
	}
	if now := descriptors(t, holder.Process.Pid); now > before+1 { // our new connection may not have been taken yet
		t.Errorf("%d descriptors, %d before", now, before)
	}
	if out, err := exec.Command(state+"/kuri-holder", "--state", state, "--", "/bin/true").CombinedOutput(); err == nil {
		t.Errorf("the lock was lost: %s", out)
	}
	syscall.Kill(keeper, syscall.SIGKILL)
	keeperOf(t, c, keeper)
}

// TestReexecFails keeps the old program where the new one cannot be executed.
func TestReexecFails(t *testing.T) {
	c, _, state := start(t, idle)
	keeper := keeperOf(t, c, 0)
	if err := os.Rename(state+"/kuri-holder", state+"/gone"); err != nil {
		t.Fatal(err)
	}
	if err := c.Reexec(""); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v", err)
	}
	if info, err := c.Info(); err != nil || info.Keeper != keeper {
		t.Errorf("%+v %v", info, err)
	}
}

// TestReexecFromAnotherFile takes another program of the same kind, by its path, and keeps what keepers are started from.
func TestReexecFromAnotherFile(t *testing.T) {
	c, _, state := start(t, "while :; do sleep 0.01; done")
	keeper := keeperOf(t, c, 0)
	other := state + "/other-holder"
	if err := errors.Join(os.Rename(state+"/kuri-holder", other), c.Program("/bin/bash"), c.Reexec(other)); err != nil {
		t.Fatal(err)
	}
	info, err := c.Info()
	if err != nil || info.Keeper != keeper {
		t.Errorf("%+v %v", info, err)
	}
	if exe := executable(info.Pid); exe != other {
		t.Errorf("the holder's program is %s", exe)
	}
	if err := c.Reexec("not/absolute"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v", err)
	}
	if err := c.Reexec(""); err != nil { // from the new file
		t.Error(err)
	}
	if err := c.RestartKeeper(); err != nil {
		t.Fatal(err)
	}
	keeperRuns(t, c, keeper, "/bin/bash")
}

// TestProgram starts the next keepers from another file, and from a descriptor of a program whose file is gone, also after
// the holder has changed its own.
func TestProgram(t *testing.T) {
	c, _, state := start(t, "while :; do sleep 0.01; done")
	old := keeperOf(t, c, 0)
	if err := c.Program("program/previous"); !errors.Is(err, fault.NotFound) {
		t.Errorf("a program that is not held: %v", err)
	}
	// 1. A path.
	shell := state + "/shell"
	copyFile(t, "/bin/sh", shell)
	if err := errors.Join(c.Program(shell), c.RestartKeeper()); err != nil {
		t.Fatal(err)
	}
	old = keeperRuns(t, c, old, shell)
	// 2. A descriptor; the file goes.
	f, err := os.Open(shell)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(c.Put("program/previous", f), os.Remove(shell), c.Program("program/previous"), c.RestartKeeper()); err != nil {
		t.Fatal(err)
	}
	old = keeperRuns(t, c, old, shell+" (deleted)")
	if err := errors.Join(c.Reexec(""), c.RestartKeeper()); err != nil {
		t.Fatal(err)
	}
	old = keeperRuns(t, c, old, shell+" (deleted)")
	// 3. Back to a path. The descriptor alone keeps no holder.
	if err := errors.Join(c.Program("/bin/bash"), c.RestartKeeper()); err != nil {
		t.Fatal(err)
	}
	old = keeperRuns(t, c, old, "/bin/bash")
	if _, err := c.Get("program/previous"); err != nil {
		t.Error(err)
	}
	syscall.Kill(old, syscall.SIGTERM)
}

// keeperRuns waits for a keeper other than old that runs the program, and returns its pid.
func keeperRuns(t *testing.T, c *Client, old int, program string) int {
	t.Helper()
	if real, err := filepath.EvalSymlinks(program); err == nil {
		program = real
	}
	pid := keeperOf(t, c, old)
	eventually(t, "the keeper runs "+program, func() bool { return executable(pid) == program })
	return pid
}

func executable(pid int) string {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return exe
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	body, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, body, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestStarterLimitReachesTheKeeper: the holder raises its own limit of descriptors, and not that of its children.
func TestStarterLimitReachesTheKeeper(t *testing.T) {
	c, _, _ := start(t, idle)
	keeper := keeperOf(t, c, 0)
	info, _ := c.Info()
	if soft(t, info.Pid) != hard(t, info.Pid) {
		t.Errorf("the holder's limit is %s of %s", soft(t, info.Pid), hard(t, info.Pid))
	}
	if soft(t, keeper) != soft(t, os.Getpid()) && soft(t, keeper) == soft(t, info.Pid) {
		t.Errorf("the keeper's limit is the holder's, %s", soft(t, keeper))
	}
}

func soft(t *testing.T, pid int) string { return openFiles(t, pid)[3] }
func hard(t *testing.T, pid int) string { return openFiles(t, pid)[4] }

func openFiles(t *testing.T, pid int) []string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if fields := strings.Fields(s.Text()); strings.HasPrefix(s.Text(), "Max open files") {
			return fields
		}
	}
	t.Fatal("no such limit")
	return nil
}

// FuzzHolder sends packets of any kind with descriptors of any number. The holder, built with the sanitizers, must go on
// and answer the next client.
func FuzzHolder(f *testing.F) {
	c, _, state := start(f, idle)
	keeperOf(f, c, 0)
	packet := func(version, op, pid uint32, name string) []byte {
		b := binary.NativeEndian.AppendUint32(nil, version)
		b = binary.NativeEndian.AppendUint32(b, op)
		return append(binary.NativeEndian.AppendUint32(b, pid), name...)
	}
	for op := range uint32(opProgram + 2) {
		if op != opReexec && op != opRestart { // a program of any name would be started as the keeper
			f.Add(packet(version, op, 1, "container/a/stdout"), byte(1))
			f.Add(packet(version, op, 0xffffffff, ""), byte(0))
		}
	}
	f.Add(packet(2, opPut, 0, strings.Repeat("n", 5000)), byte(9))
	f.Add([]byte("short"), byte(3))
	null, err := os.Open("/dev/null")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte, files byte) {
		if len(body) >= 8 {
			if op := binary.NativeEndian.Uint32(body[4:]); op == opReexec || op == opRestart {
				return
			}
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: state + "/holder.sock"}); err != nil {
			t.Fatal(err)
		}
		var rights []byte
		if n := int(files % 12); n > 0 {
			rights = unix.UnixRights(slices.Repeat([]int{int(null.Fd())}, n)...)
		}
		if err := unix.Sendmsg(fd, body, rights, nil, unix.MSG_NOSIGNAL); err != nil && err != unix.EMSGSIZE {
			t.Fatal(err)
		}
		if info, err := c.Info(); err != nil || info.Keeper == 0 {
			t.Fatalf("after %q: %+v %v", body, info, err)
		}
	})
}

// FuzzAnswer reads answers of any kind.
func FuzzAnswer(f *testing.F) {
	f.Add(make([]byte, 12))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if a, err := parse(packet, nil, nil); err == nil && a.fd != -1 {
			t.Error("a descriptor of nowhere")
		}
	})
}
