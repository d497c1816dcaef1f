package server_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// toldByTheKernel reports whether this kernel returns an exit status to any holder of a pidfd, as
// Linux 6.15 does.
var toldByTheKernel = func() bool {
	var u unix.Utsname
	var major, minor int
	if unix.Uname(&u) == nil {
		fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	}
	return major > 6 || major == 6 && minor >= 15
}()

// holderInfo returns the info of the serving holder.
func (n *node) holderInfo() (holder.Info, error) {
	h := holder.Connect(n.state)
	defer h.Close()
	return h.Info()
}

// killHolder kills only the holder, and returns when another one and its keeper serve.
func (n *node) killHolder() {
	n.t.Helper()
	old, err := n.holderInfo()
	n.must(err)
	n.must(unix.Kill(old.Pid, syscall.SIGKILL))
	begun := time.Now()
	if !eventually(func() bool {
		now, err := n.holderInfo()
		return err == nil && now.Pid != old.Pid && now.Keeper != 0
	}) {
		n.t.Fatal("no holder takes the place of the dead one")
	}
	n.awaitKeeper(old.Keeper)
	n.t.Logf("holder and keeper serve again after %s", time.Since(begun).Round(time.Millisecond))
	if now, err := n.holderInfo(); err != nil || now.Pid != old.Keeper {
		n.t.Errorf("the holder is %+v, %v, and not the keeper of before, %d, who is the parent of the containers", now, err, old.Keeper)
	}
}

// A holder that dies alone is replaced at once. The next one has everything that it had: whichever
// process is killed after that, nothing that runs is lost.
func TestKilledHolderIsReplaced(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	shared := n.sandbox(func(r *api.CreateSandboxRequest) { r.Pid, r.CgroupsPath = true, n.cgroup+"/init" })
	printing := n.run(box, counting)
	n.finish(box, "echo one > /dev/shm/file")
	asking := n.run(box, "while read x; do echo got $x; [ $x = end ] && exit 7; done", func(j *job) { j.Stdin = true })
	typing := n.run(box, "while read x; do echo got $x; [ $x = end ] && exit 8; done", func(j *job) {
		j.Stdin, j.Tty, j.spec.Process.Terminal = true, true, true
	})
	n.run(shared, "sleep 1000")
	waiting := n.job(box, "echo begun; exit 5")
	_, err := n.Create(t.Context(), waiting.CreateRequest)
	n.must(err)
	before := n.pids()
	for i, kill := range []func(){
		n.killHolder, n.killHolder, func() { n.killKeeper(false) }, n.killHolder, func() { n.killKeeper(false) }, func() { n.killKeeper(false) },
	} {
		counted := n.counted(printing)
		kill()
		if after := n.pids(); !mapsEqual(before, after) {
			t.Fatalf("processes were %v and are %v", before, after)
		}
		if !eventually(func() bool { return n.counted(printing) > counted+100 }) {
			t.Fatal("what the container prints does not come to its log any more")
		}
		for _, j := range []*job{asking, typing} {
			n.must(n.stdinOf(j, fmt.Sprintf("%d\n", i), fmt.Sprintf("got %d", i)))
		}
		if exit, out := n.finish(box, "hostname; cat /dev/shm/file; exit 3"); exit.Code != 3 || exit.Unknown != "" || out != "web\none\n" {
			t.Errorf("exit %+v, output %q", exit, out)
		}
	}
	n.wantCount(printing, 600, false)

	// The exit codes of containers started under the first holder.
	for j, code := range map[*job]int32{asking: 7, typing: 8} {
		n.must(n.stdinOf(j, "end\n", "got end"))
		if c := n.wait(j); c.Exit.Code != code || c.Exit.Unknown != "" {
			t.Errorf("exit %+v, want %d", c.Exit, code)
		}
	}
	_, err = n.Start(t.Context(), waiting.Id)
	n.must(err)
	if c := n.wait(waiting); c.Exit.Code != 5 || n.output(waiting) != "begun\n" {
		t.Errorf("exit %+v, output %q", c.Exit, n.output(waiting))
	}

	// The new holder has the named descriptors, and no others of the keeper that it was.
	info, err := n.holderInfo()
	n.must(err)
	h := holder.Connect(n.state)
	defer h.Close()
	names, err := h.Names()
	n.must(err)
	const own = 8 // 0 to 2, lock, listener, signals, at most two clients
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", info.Pid)); err != nil || len(fds) > len(names)+own {
		t.Errorf("the holder has %d descriptors for %d names: %v", len(fds), len(names), err)
	}
}

// If the holder is killed and its keeper a moment later, or the other way round, containers
// continue with their pids and the node serves again.
func TestHolderAndKeeperKilledInTurn(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, "trap '' PIPE; "+counting)
	before := n.pids()
	for range 12 {
		info, err := n.holderInfo()
		n.must(err)
		victims := []int{info.Pid, info.Keeper}
		if rand.IntN(2) == 0 {
			victims = []int{info.Keeper, info.Pid}
		}
		n.must(unix.Kill(victims[0], syscall.SIGKILL))
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
		unix.Kill(victims[1], syscall.SIGKILL) // it may be the new holder, or have exited
		if !eventually(func() bool {
			info, err := n.Info(t.Context())
			now, herr := n.holderInfo()
			return err == nil && herr == nil && now.Keeper == int(info.Pid) && n.alive(now.Keeper)
		}) {
			t.Fatalf("the node does not serve after %v were killed", victims)
		}
		if after := n.pids(); !mapsEqual(before, after) {
			t.Fatalf("processes were %v and are %v", before, after)
		}
		if exit, out := n.finish(box, "hostname; exit 3"); exit.Code != 3 || exit.Unknown != "" || out != "web\n" {
			t.Errorf("exit %+v, output %q", exit, out)
		}
		counted := n.counted(j)
		if !eventually(func() bool { return n.counted(j) > counted+50 }) {
			t.Fatal("what the container prints does not come to its log any more")
		}
	}
	n.wantCount(j, 100, true)
	// A keeper whose holder died before it has logged an error, which the test harness would
	// report.
	log, err := os.ReadFile(filepath.Join(n.state, "keeper.log"))
	n.must(err)
	n.must(os.WriteFile(filepath.Join(n.state, "keeper.log"), []byte(strings.ReplaceAll(string(log), "kuri-keeper: the holder", "the holder")), 0o600))
}

// alive reports whether a process with that pid exists.
func (n *node) alive(pid int) bool { return pid != 0 && unix.Kill(pid, 0) == nil }

// killed counts the kills of a process. It may be used concurrently.
type killed struct{ begun, done atomic.Int32 }

func (k *killed) count(kill func()) {
	k.begun.Add(1)
	kill()
	k.done.Add(1)
}

// The holder, and sometimes its keeper, is killed at random moments while containers are created
// and deleted. The exit of a container is known unless its keeper and the holder after it were both
// killed during its life.
func TestHolderKilledAtRandom(t *testing.T) {
	n := newNode(t)
	beside := n.run(n.sandbox(), counting)
	before := n.pids()
	stop := make(chan struct{})
	var keepers, holders killed
	rounds := make([]atomic.Int32, 1)
	var churn sync.WaitGroup
	churn.Go(func() {
		for ; ; rounds[0].Add(1) {
			select {
			case <-stop:
				return
			default:
			}
			code := rounds[0].Load()%100 + 1
			box := n.sandbox()
			k, h := keepers.done.Load(), holders.done.Load()
			j := n.run(box, fmt.Sprintf("echo one; echo two; exit %d", code))
			c := n.wait(j)
			unseen := !toldByTheKernel || keepers.begun.Load() > k && holders.begun.Load() > h
			if (c.Exit.Code != code || c.Exit.OomKilled) && !(unseen && c.Exit.Unknown != "") {
				t.Errorf("exit %+v, want %d", c.Exit, code)
			}
			if out := strings.ReplaceAll(n.output(j), "one\ntwo\none\ntwo\n", "one\ntwo\n"); out != "one\ntwo\n" {
				t.Errorf("output %q", out)
			}
			n.must(n.Delete(t.Context(), j.Id))
			n.must(n.RemoveSandbox(t.Context(), box.Id))
			n.wantNothingOf(j.Id, box.Id)
			if t.Failed() {
				return
			}
		}
	})
	for i := range 12 {
		if i%killsInARow == 0 {
			n.awaitRounds(rounds)
		}
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		if i%3 == 2 {
			keepers.count(func() { n.killKeeper(false) })
		} else {
			holders.count(n.killHolder)
		}
		if after := n.pids()[beside.Id]; after != before[beside.Id] || t.Failed() {
			t.Errorf("beside it ran %v, and now %v", before, after)
			break
		}
	}
	close(stop)
	churn.Wait()
	n.wantCount(beside, 100, false)
	n.wantNoInits()
}

// A kurid that finds no socket sends SIGHUP to the keeper's processes to restore them. That must
// not kill a keeper that is becoming the holder.
func TestHangUpDoesNotKillANewHolder(t *testing.T) {
	n := newNode(t)
	n.sandbox()
	for range 5 {
		old, err := n.holderInfo()
		n.must(err)
		n.must(unix.Kill(old.Pid, syscall.SIGKILL))
		for until := time.Now().Add(300 * time.Millisecond); time.Now().Before(until); {
			if err := unix.Kill(old.Keeper, syscall.SIGHUP); err != nil {
				t.Fatalf("the keeper, process %d, that was to become the holder is gone: %v", old.Keeper, err)
			}
		}
		if !eventually(func() bool {
			now, err := n.holderInfo()
			return err == nil && now.Pid == old.Keeper && now.Keeper != 0
		}) {
			now, err := n.holderInfo()
			t.Fatalf("the holder is %+v, %v, and not process %d", now, err, old.Keeper)
		}
		n.awaitKeeper(old.Keeper)
	}
}
