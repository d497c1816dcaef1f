package server_test

import (
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
	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// killKeeper kills the keeper, and the holder if requested, and returns when another keeper serves.
func (n *node) killKeeper(andHolder bool) {
	n.t.Helper()
	old, err := n.Info(n.t.Context())
	n.must(err)
	if andHolder {
		h := holder.Connect(n.state)
		info, err := h.Info()
		h.Close()
		n.must(err)
		n.must(unix.Kill(info.Pid, syscall.SIGKILL))
	}
	n.must(unix.Kill(int(old.Pid), syscall.SIGKILL))
	n.awaitKeeper(int(old.Pid))
}

// awaitKeeper returns when a keeper other than old serves.
func (n *node) awaitKeeper(old int) {
	n.t.Helper()
	if !eventually(func() bool {
		now, err := n.Info(n.t.Context())
		return err == nil && int(now.Pid) != old
	}) {
		n.t.Fatal("no keeper takes the place of the dead one")
	}
}

// pids returns the pids of the first processes of running containers, by container id.
func (n *node) pids() map[string]int {
	n.t.Helper()
	list, err := n.List(n.t.Context())
	n.must(err)
	pids := make(map[string]int)
	for _, c := range list.Containers {
		if c.State != api.State_EXITED {
			pids[c.Id] = int(c.Pid)
		}
	}
	return pids
}

const counting = "i=0; while :; do echo $i; i=$((i+1)); [ $((i % 50)) = 0 ] && sleep 0.01; done"

// wantCount asserts that the log has the numbers from 0 to at least least in order, except that a
// piece may appear twice or, with gaps, be missing. With gaps the shell may also complain about a pipe
// that nobody held.
func (n *node) wantCount(j *job, least int, gaps bool) {
	n.t.Helper()
	next, again := 0, 0
	for line := range strings.Lines(n.output(j)) {
		got, err := strconv.Atoi(strings.TrimSpace(line))
		switch {
		case gaps && strings.Contains(line, "Broken pipe"):
		case gaps && err == nil && got > next:
			next = got + 1
		case err != nil || got > next:
			n.t.Fatalf("line %q after %d", line, next-1)
		case got < next:
			again++
		default:
			next++
		}
	}
	if next < least {
		n.t.Errorf("the log ends with %d, want %d at least", next-1, least)
	}
	n.t.Logf("%d lines, and %d that stand twice", next, again)
}

func (n *node) counted(j *job) int { return strings.Count(n.output(j), "\n") }

func killBoth(both bool) string {
	return map[bool]string{false: "keeper", true: "keeper and holder"}[both]
}

// Containers continue when the keeper is killed, and when the holder dies with it.
func TestKilledKeeperLosesNothing(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(killBoth(both), func(t *testing.T) {
			n := newNode(t)
			alone := n.sandbox()
			shared := n.sandbox(func(r *api.CreateSandboxRequest) { r.Pid, r.CgroupsPath = true, n.cgroup+"/init" })
			script := counting
			if both { // for a moment nobody reads its pipe
				script = "trap '' PIPE; " + counting
			}
			printing := n.run(alone, script)
			n.finish(alone, "echo one > /dev/shm/file")
			question := "printf 'tell me: '; read a; echo you said $a; read b; echo and $b; exit 7"
			if both { // this ends its stdin
				question = "printf 'tell me: '; sleep 1000"
			}
			asking := n.run(alone, question, func(j *job) { j.Stdin = true })
			neighbour := n.run(shared, "sleep 1000")
			waiting := n.job(alone, "echo begun; exit 5")
			_, err := n.Create(t.Context(), waiting.CreateRequest)
			n.must(err)
			if !both {
				n.must(n.stdinOf(asking, "this\n", "you said this"))
			}
			before := n.pids()
			for range 4 {
				counted := n.counted(printing)
				n.killKeeper(both)
				if after := n.pids(); !mapsEqual(before, after) {
					t.Fatalf("processes were %v and are %v", before, after)
				}
				if !eventually(func() bool { return n.counted(printing) > counted+100 }) {
					t.Fatal("what the container prints does not come to its log any more")
				}
			}
			n.wantCount(printing, 400, both)

			// Existing resources continue to work.
			if !both {
				n.must(n.stdinOf(asking, "that\n", "and that"))
				if c := n.wait(asking); c.Exit.Code != 7 || c.Exit.Unknown != "" {
					t.Errorf("exit %+v", c.Exit)
				}
				if out := n.output(asking); out != "tell me: you said this\nand that\n" {
					t.Errorf("output %q", out)
				}
			}
			_, err = n.Start(t.Context(), waiting.Id)
			n.must(err)
			if c := n.wait(waiting); c.Exit.Code != 5 || n.output(waiting) != "begun\n" {
				t.Errorf("exit %+v, output %q", c.Exit, n.output(waiting))
			}
			if code, out, _ := n.exec(neighbour, "ps | grep -c '[k]uri-init'"); code != 0 || out != "1\n" {
				t.Errorf("exec: %d %q", code, out)
			}

			// New containers share them, by the paths of the first keeper.
			exit, out := n.finish(alone, "hostname; cat /dev/shm/file")
			if exit.Code != 0 || out != "web\none\n" {
				t.Errorf("exit %+v, output %q", exit, out)
			}
			same := func(kind string) {
				t.Helper()
				first, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", before[printing.Id], kind))
				n.must(err)
				_, out := n.finish(alone, "readlink /proc/self/ns/"+kind)
				if out != first+"\n" {
					t.Errorf("the %s namespace is %q, was %q", kind, out, first)
				}
			}
			same("ipc")
			same("uts")
			same("net")
			if _, out := n.finish(shared, "ps -o args | grep -c '[k]uri-init\\|[s]leep 1000'"); out != "2\n" {
				t.Errorf("%q processes of the pod's in its PID namespace", out)
			}
			n.must(n.Signal(t.Context(), neighbour.Id, syscall.SIGTERM, false))
			if c := n.wait(neighbour); c.Exit.Code != 143 {
				t.Errorf("exit %+v", c.Exit)
			}
		})
	}
}

func mapsEqual(a, b map[string]int) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

// stdinOf writes to a container's stdin, waits until its log has the answer, and detaches.
func (n *node) stdinOf(j *job, text, answer string) error {
	n.t.Helper()
	a := n.attach(j, true)
	go func() {
		a.stdin.CloseWithError(<-a.done) // if it ends early
		a.done <- nil
	}()
	_, err := a.stdin.Write([]byte(text))
	n.waitOutput(j, answer)
	a.cancel()
	<-a.done
	return err
}

// The next keeper reports exits that happened while there was no keeper.
func TestExitsWhileNoKeeperIsThere(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	short := n.run(box, "sleep 0.2; echo last words; exit 9")
	killed := n.run(box, "sleep 1000")
	limit := int64(32 << 20)
	oom := n.run(box, "sleep 0.2; x=a; while :; do x=$x$x; done",
		func(j *job) { j.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit} })
	info, err := n.Info(t.Context())
	n.must(err)
	pid := n.pids()[killed.Id]
	// Stop the keeper first, so that it notices none of the exits.
	n.must(unix.Kill(int(info.Pid), syscall.SIGSTOP))
	n.must(unix.Kill(pid, syscall.SIGKILL))
	time.Sleep(time.Second)
	n.must(unix.Kill(int(info.Pid), syscall.SIGKILL))
	n.awaitKeeper(int(info.Pid))
	for j, want := range map[*job]*api.Exit{short: {Code: 9}, killed: {Code: 137}, oom: {Code: 137, OomKilled: true}} {
		if c := n.wait(j); c.Exit.Code != want.Code || c.Exit.OomKilled != want.OomKilled || c.Exit.Unknown != "" {
			t.Errorf("exit %+v, want %+v", c.Exit, want)
		}
		if record, err := keeper.ReadExit(j.Bundle); err != nil || record.Code != want.Code ||
			record.OOMKilled != want.OomKilled {
			t.Errorf("%+v, %v", record, err)
		}
	}
	if out := n.output(short); out != "last words\n" {
		t.Errorf("output %q", out)
	}
}

// If the holder has also died and the process with it, the exit code is unknown and reported as
// such.
func TestExitsThatNobodySaw(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 1000")
	h := holder.Connect(n.state)
	defer h.Close()
	parent, err := h.Info()
	n.must(err)
	pid := n.pids()[j.Id]
	n.must(unix.Kill(parent.Pid, syscall.SIGKILL))
	n.must(unix.Kill(parent.Keeper, syscall.SIGKILL))
	n.must(unix.Kill(pid, syscall.SIGKILL))
	if !eventually(func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) }) {
		t.Skip("SKIP: nobody reaps orphans here")
	}
	n.awaitKeeper(parent.Keeper)
	if c := n.wait(j); c.Exit.Code != 255 || c.Exit.Unknown == "" {
		t.Errorf("exit %+v", c.Exit)
	}
}

// An unreadable record does not affect running containers.
func TestDamagedRecords(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, counting)
	before := n.pids()
	path := filepath.Join(n.state, "keeper", "containers", j.Id+".json")
	n.must(os.WriteFile(path, []byte("{"), 0o600))
	n.killKeeper(false)
	if after := n.pids(); !mapsEqual(before, after) {
		t.Fatalf("processes were %v and are %v", before, after)
	}
	if _, err := os.Stat(path + ".damaged"); err != nil {
		t.Error(err)
	}
	list, err := n.List(t.Context())
	n.must(err)
	if i := slices.IndexFunc(list.Containers,
		func(c *api.Container) bool { return c.Id == j.Id }); i < 0 || list.Containers[i].Note == "" {
		t.Errorf("what was lost is not said: %v", list.Containers)
	}
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, true))
	if c := n.wait(j); c.Exit.Code != 137 {
		t.Errorf("exit %+v", c.Exit)
	}
}

// The removal of a sandbox whose record was lost leaves neither its network namespace nor its init.
func TestRemoveSandboxWithDamagedRecord(t *testing.T) {
	n := newNode(t)
	box := n.sandbox(func(r *api.CreateSandboxRequest) { r.Pid, r.CgroupsPath = true, n.cgroup+"/"+r.Id })
	if box.InitPid == 0 {
		t.Fatal("it has no init")
	}
	n.must(os.WriteFile(filepath.Join(n.state, "keeper", "sandboxes", box.Id+".json"), []byte("{"), 0o600))
	n.killKeeper(false)
	list, err := n.List(t.Context())
	n.must(err)
	if len(list.Sandboxes) != 0 {
		t.Fatalf("the keeper holds %v", list.Sandboxes)
	}
	n.must(n.RemoveSandbox(t.Context(), box.Id))
	if _, err := os.Lstat("/run/netns/kuri-" + box.Id); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its network namespace is pinned still: %v", err)
	}
	if !eventually(func() bool { return unix.Kill(int(box.InitPid), 0) == unix.ESRCH }) {
		t.Error("its init lives")
	}
	for _, root := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} { // above it is the pod's, which kurid removes
		dirs, _ := filepath.Glob(root + n.cgroup + "/" + box.Id)
		for _, dir := range dirs {
			os.Remove(dir)
		}
	}
	n.must(n.RemoveSandbox(t.Context(), box.Id))
}

// Callers wait only once for a hanging holder.
func TestHangingHolder(t *testing.T) {
	n := newNode(t)
	h := holder.Connect(n.state)
	defer h.Close()
	info, err := h.Info()
	n.must(err)
	n.must(unix.Kill(info.Pid, syscall.SIGSTOP))
	begun := time.Now()
	box := n.sandbox()
	j := n.run(box, "echo on; exit 3")
	if c := n.wait(j); c.Exit.Code != 3 || n.output(j) != "on\n" {
		t.Errorf("exit %+v, output %q", c.Exit, n.output(j))
	}
	if took := time.Since(begun); took > 20*time.Second { // the limit of one answer (5 s) plus the time of a start
		t.Errorf("a start took %s beside a holder that hangs", took)
	}
	n.must(unix.Kill(info.Pid, syscall.SIGCONT))
	n.must(n.Delete(t.Context(), j.Id))
}

// A keeper with many containers is replaced quickly. The test prints the time: well under a second
// on an idle machine.
func TestManyAreRecoveredQuickly(t *testing.T) {
	n := newNode(t)
	const count = 60
	for range count {
		n.run(n.sandbox(), "sleep 1000")
	}
	before := n.pids()
	old, err := n.Info(t.Context())
	n.must(err)
	n.must(unix.Kill(int(old.Pid), syscall.SIGKILL))
	begun := time.Now()
	now, err := n.Info(t.Context()) // waits for the next keeper
	n.must(err)
	took := time.Since(begun)
	t.Logf("another keeper serves %d pods after %s", count, took)
	if now.Pid == old.Pid || took > 20*time.Second {
		t.Errorf("keeper %d after %s, keeper %d before", now.Pid, took, old.Pid)
	}
	if after := n.pids(); !mapsEqual(before, after) {
		t.Errorf("processes were %v and are %v", before, after)
	}
	t.Logf("keeper: %d KB, with %d descriptors", memory(t, int(now.Pid)), n.descriptors())
}

// A terminal survives the keeper: input is read, and output is in the log.
func TestTerminalOutlivesTheKeeper(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "echo ready; while read line; do echo \"got $line\"; [ \"$line\" = end ] && exit 4; done",
		func(j *job) {
			j.Tty, j.spec.Process.Terminal = true, true
		})
	n.waitOutput(j, "ready")
	for _, word := range []string{"one", "two"} {
		n.killKeeper(false)
		n.must(n.stdinOf(j, word+"\n", "got "+word))
	}
	n.killKeeper(false)
	n.must(n.stdinOf(j, "end\n", "got end"))
	if c := n.wait(j); c.Exit.Code != 4 {
		t.Errorf("exit %+v", c.Exit)
	}
	if out := n.output(j); out != "ready\r\none\r\ngot one\r\ntwo\r\ngot two\r\nend\r\ngot end\r\n" {
		t.Errorf("output %q", out)
	}
}

// A stdin that was passed to the first client and closed with it is also closed for the next
// keeper.
func TestStdinOnceOutlivesTheKeeper(t *testing.T) {
	n := newNode(t)
	once := func(j *job) { j.Stdin, j.StdinOnce = true, true }
	box := n.sandbox()
	given, kept := n.run(box, "cat; echo ended; sleep 1000", once), n.run(box, "cat; echo ended", once)
	n.must(n.stdinOf(given, "first\n", "first"))
	n.waitOutput(given, "ended")
	n.killKeeper(false)
	if _, err := n.Attach(t.Context(), given.Id, keeper.Streams{Stdin: strings.NewReader("more")}); !errors.Is(err,
		fault.Precondition) {
		t.Errorf("a stdin is given again: %v", err)
	}
	n.must(n.stdinOf(kept, "second\n", "second"))
	if c := n.wait(kept); c.Exit.Code != 0 || n.output(kept) != "second\nended\n" {
		t.Errorf("exit %+v, output %q", c.Exit, n.output(kept))
	}
}

// An attached client continues with the next keeper, and receives the container's exit.
func TestAttachmentOutlivesTheKeeper(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	for name, change := range map[string]func(*job){
		"pipes":    func(j *job) { j.Stdin = true },
		"terminal": func(j *job) { j.Stdin, j.Tty, j.spec.Process.Terminal = true, true, true },
	} {
		t.Run(name, func(t *testing.T) {
			j := n.run(box, `echo ready; while read x; do echo "got $x"; [ "$x" = end ] && exit 6; done`, change)
			n.waitOutput(j, "ready")
			a := n.attach(j, true)
			say := func(word string) {
				if !eventually(func() bool {
					fmt.Fprintln(a.stdin, word)
					time.Sleep(50 * time.Millisecond)
					return strings.Contains(a.String(), "got "+word)
				}) {
					t.Fatalf("no answer to %s: %q", word, a.String())
				}
			}
			say("one")
			for _, word := range []string{"two", "three"} {
				n.killKeeper(false)
				say(word)
			}
			n.killKeeper(false)
			go func() { // what is written before it is attached again may be lost
				for {
					if _, err := fmt.Fprintln(a.stdin, "end"); err != nil {
						return
					}
					time.Sleep(50 * time.Millisecond)
				}
			}()
			select {
			case err := <-a.done:
				if err != nil || a.code != 6 {
					t.Errorf("code %d, %v", a.code, err)
				}
			case <-time.After(30 * time.Second):
				t.Error("the attachment does not end")
			}
		})
	}
}

// A keeper leaves records of a newer version unchanged and names one. Running containers continue,
// until a keeper that reads the records starts.
func TestNewerRecordsAreRefused(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), counting)
	before := n.pids()
	path := filepath.Join(n.state, "keeper", "containers", j.Id+".json")
	ours, err := os.ReadFile(path)
	n.must(err)
	newer := strings.Replace(string(ours), `{"version":1,`, `{"version":99,`, 1)
	n.must(os.WriteFile(path, []byte(newer), 0o600))
	old, err := n.Info(t.Context())
	n.must(err)
	n.must(unix.Kill(int(old.Pid), syscall.SIGKILL))
	if !eventually(func() bool {
		log, err := os.ReadFile(filepath.Join(n.state, "keeper.log"))
		return err == nil && strings.Contains(string(log), path+" has format version 99")
	}) {
		t.Error("the record is not named")
	}
	if left, err := os.ReadFile(path); err != nil || string(left) != newer {
		t.Errorf("the record has become %q, %v", left, err)
	}
	n.must(os.WriteFile(filepath.Join(n.state, "ours"), ours, 0o600)) // as the newer keeper would read it
	n.must(os.Rename(filepath.Join(n.state, "ours"), path))           // at once: a keeper may be reading it
	n.awaitKeeper(int(old.Pid))
	if after := n.pids(); !mapsEqual(before, after) {
		t.Errorf("processes were %v and are %v", before, after)
	}
	counted := n.counted(j)
	if !eventually(func() bool { return n.counted(j) > counted+100 }) {
		t.Error("it is not heard any more")
	}
	n.wantCount(j, 100, false)
	// The refusing keeper has logged its error, which the test harness would report as an
	// unexpected end.
	log, err := os.ReadFile(filepath.Join(n.state, "keeper.log"))
	n.must(err)
	n.must(os.WriteFile(filepath.Join(n.state, "keeper.log"),
		[]byte(strings.ReplaceAll(string(log), "kuri-keeper:", "refused:")), 0o600))
}
