package holder

import (
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

	"github.com/kuri-cri/kuri/internal/fault"
)

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
	if err := c.PutAll(files); err == nil || !strings.Contains(err.Error(), "a bad name") ||
		strings.Contains(err.Error(), "many/") {
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

// TestExitStatusOutlivesTheKeeper has a keeper that starts a process and is killed: the process
// ends afterwards, and the holder knows how.
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
