package server_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
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

// steps returns all failpoints of the keeper's workflows, from the source.
func steps(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`failpoint\.At\("(.*)"\)`).FindAllStringSubmatch(string(body), -1) {
			if !strings.HasPrefix(m[1], "take over: ") { // covered by TestTakeOverKilledAtEachStep of test/e2e
				all = append(all, m[1])
			}
		}
	}
	return all
}

// killableKeeper builds a keeper that can be killed at its failpoints.
func killableKeeper(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIP: the keeper needs root")
	}
	dir := filepath.Join(filepath.Dir(program), "killed")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	killed := filepath.Join(dir, "kuri-keeper")
	if err := buildKeeper(killed, "seccomp netgo osusergo failpoint"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(filepath.Dir(program), "kuri-holder"),
		filepath.Join(dir, "kuri-holder")); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	return killed
}

// The keeper is killed at each step of each workflow. The caller does not notice, other containers
// continue, and nothing is left at the end.
func TestKilledAtEachStep(t *testing.T) {
	killed := killableKeeper(t)
	all := steps(t)
	if len(all) < 20 {
		t.Fatalf("there are %d steps", len(all))
	}
	for _, step := range all {
		if step == "exec: intended" { // only execs by libcontainer have it: TestExecsRunOnce
			continue
		}
		kill := func(t *testing.T, way func(*job)) {
			n := newNodeOf(t, killed)
			beside := n.run(n.sandbox(), counting)
			before := n.pids()
			point := filepath.Join(n.state, "failpoint")
			n.must(os.WriteFile(point, []byte(step), 0o600))

			box := n.sandbox(func(r *api.CreateSandboxRequest) { r.Pid, r.CgroupsPath = true, n.cgroup+"/init" })
			j := n.run(box, "echo begun; exit 5", way)
			if c := n.wait(j); c.Exit.Code != 5 || c.Exit.OomKilled || c.Exit.Unknown != "" {
				t.Errorf("exit %+v", c.Exit)
			}
			if out := n.output(j); out != "begun\n" {
				t.Errorf("output %q", out)
			}
			if code, out, _ := n.exec(beside, "echo executed; exit 3"); code != 3 || out != "executed\n" {
				t.Errorf("exec: %d %q", code, out)
			}
			n.must(n.Delete(t.Context(), j.Id))
			n.must(n.RemoveSandbox(t.Context(), box.Id))

			if !eventually(func() bool { _, err := os.Stat(point); return err != nil }) {
				t.Error("the keeper was not killed")
			}
			n.awaitKeeper(0)
			if after := n.pids(); !mapsEqual(before, after) {
				t.Errorf("beside it ran %v, and now %v", before, after)
			}
			counted := n.counted(beside)
			if !eventually(func() bool { return n.counted(beside) > counted+100 }) {
				t.Error("what runs beside it is not heard any more")
			}
			n.wantCount(beside, 100, false)
			n.wantNothingOf(j.Id, box.Id)
			n.wantNoInits()
			n.wantNoExecs(beside)
		}
		if step != "start: begun" { // our own init does not have it
			t.Run(step, func(t *testing.T) { kill(t, func(*job) {}) })
		}
		if strings.HasPrefix(step, "create: ") || strings.HasPrefix(step, "start: ") {
			t.Run(step+" by libcontainer", func(t *testing.T) { kill(t, byLibcontainer) })
		}
	}
}

// wantNothingOf asserts that nothing is left of a container and a sandbox.
func (n *node) wantNothingOf(ids ...string) {
	n.t.Helper()
	h := holder.Connect(n.state)
	defer h.Close()
	var left []string
	if eventually(func() bool {
		left = nil
		names, err := h.Names()
		if err != nil {
			left = append(left, err.Error()) // another holder is starting
		}
		for _, id := range ids {
			for _, name := range names {
				if strings.Contains(name, id) {
					left = append(left, "the holder has "+name)
				}
			}
			for _, pattern := range []string{
				n.state + "/keeper/*/*" + id + "*", n.state + "/mounts/" + id, n.state + "/mounts/.oci/" + id,
				"/run/netns/kuri-" + id, "/sys/fs/cgroup/*" + n.cgroup + "/*" + id, "/sys/fs/cgroup/*" + n.cgroup + "/init",
				"/sys/fs/cgroup" + n.cgroup + "/*" + id, "/sys/fs/cgroup" + n.cgroup + "/init",
			} {
				found, _ := filepath.Glob(pattern)
				left = append(left, found...)
			}
		}
		return len(left) == 0
	}) {
		return
	}
	n.t.Errorf("this is left: %q", left)
}

// wantNoInits asserts that no init of a pod is left.
func (n *node) wantNoInits() {
	n.t.Helper()
	var left []string
	if !eventually(func() bool {
		left = nil
		all, _ := filepath.Glob("/proc/[0-9]*/comm")
		for _, comm := range all {
			body, _ := os.ReadFile(comm)
			cgroup, _ := os.ReadFile(filepath.Join(filepath.Dir(comm), "cgroup"))
			if strings.TrimSpace(string(body)) == "kuri-init" &&
				(strings.Contains(string(cgroup), n.cgroup) || strings.Contains(string(cgroup), n.ownCgroup())) {
				left = append(left, comm)
			}
		}
		return len(left) == 0
	}) {
		n.t.Errorf("inits are left: %q", left)
	}
}

// killsInARow is the number of kills after which the work beside them may finish a round. A call
// survives the loss of ten connections to a keeper, and a kill may cost it two.
const killsInARow = 4

// awaitRounds returns when each goroutine that counts its rounds has finished another one.
func (n *node) awaitRounds(rounds []atomic.Int32) {
	n.t.Helper()
	for i := range rounds {
		before := rounds[i].Load()
		if !eventually(func() bool { return rounds[i].Load() > before || n.t.Failed() }) {
			n.t.Fatalf("goroutine %d does not go on", i)
		}
	}
}

// The keeper is killed at random moments while containers are created and deleted, KURI_TEST_KILLS
// times: 200 in `make kills`.
func TestKilledAtRandom(t *testing.T) {
	kills := 10
	if n, err := strconv.Atoi(os.Getenv("KURI_TEST_KILLS")); err == nil {
		kills = n
	}
	n := newNode(t)
	beside := n.run(n.sandbox(), counting)
	before := n.pids()
	stop := make(chan struct{})
	var churn sync.WaitGroup
	rounds := make([]atomic.Int32, 2)
	for worker := range rounds {
		churn.Go(func() {
			for ; ; rounds[worker].Add(1) {
				select {
				case <-stop:
					return
				default:
				}
				code := rounds[worker].Load()%100 + 1
				box := n.sandbox(func(r *api.CreateSandboxRequest) {
					r.Pid, r.CgroupsPath = worker == 1, n.cgroup+"/init-"+r.Id[:8]
				})
				j := n.run(box, fmt.Sprintf("echo one; echo two; exit %d", code))
				if c := n.wait(j); c.Exit.Code != code || c.Exit.Unknown != "" || c.Exit.OomKilled {
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
	}
	for i := range kills {
		if i%killsInARow == 0 {
			n.awaitRounds(rounds)
		}
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		info, err := n.Info(t.Context())
		n.must(err)
		n.must(unix.Kill(int(info.Pid), syscall.SIGKILL))
		n.awaitKeeper(int(info.Pid))
		if after := n.pids()[beside.Id]; after != before[beside.Id] {
			t.Fatalf("beside it ran %v, and now %v", before, after)
		}
		if t.Failed() {
			break
		}
	}
	close(stop)
	churn.Wait()
	counted := n.counted(beside)
	if !eventually(func() bool { return n.counted(beside) > counted+100 }) {
		t.Error("what runs beside it is not heard any more")
	}
	n.wantCount(beside, 100, false)
	n.wantNoInits()
	t.Logf("%d kills, %d and %d rounds", kills, rounds[0].Load(), rounds[1].Load())
}
