package server_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// mounts returns the host's mounts that belong to this node. Others come and go.
func (n *node) mounts() []string {
	n.t.Helper()
	body, err := os.ReadFile("/proc/self/mountinfo")
	n.must(err)
	var ours []string
	temporary := filepath.Dir(filepath.Dir(n.layers[0])) // above all that t.TempDir returns
	for line := range strings.Lines(string(body)) {
		if strings.Contains(line, filepath.Dir(n.state)) || strings.Contains(line, temporary) {
			ours = append(ours, strings.TrimSpace(line))
		}
	}
	return ours
}

// wantNoProcess asserts that no process of the container has arg in its command line, according to
// pgrep in the container.
func (n *node) wantNoProcess(j *job, arg string) {
	n.t.Helper()
	var ps string
	if !eventually(func() bool {
		_, ps, _ = n.exec(j, "ps -o pid,stat,args | grep -v grep")
		return !strings.Contains(ps, arg) && !strings.Contains(ps, " Z ")
	}) {
		n.t.Errorf("processes are left:\n%s", ps)
	}
	if pids := n.processes(arg); len(pids) > 0 {
		n.t.Errorf("processes are left on the host: %v", pids)
	}
}

func (n *node) wantNoExecCgroups(j *job) {
	n.t.Helper()
	var left []string
	if !eventually(func() bool {
		left, _ = filepath.Glob("/sys/fs/cgroup/*" + n.cgroup + "/" + j.Id + "/exec-*")
		return len(left) == 0
	}) {
		n.t.Errorf("cgroups of execs are left: %v", left)
	}
}

// descriptors returns the number of the keeper's open descriptors.
func (n *node) descriptors() int {
	n.t.Helper()
	info, err := n.Info(n.t.Context())
	n.must(err)
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", info.Pid))
	n.must(err)
	return len(fds)
}

// processes returns the processes whose command line begins with "sleep <arg>".
func (n *node) processes(arg string) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if body, _ := os.ReadFile(f); !bytes.HasPrefix(body, []byte("sleep\x00"+arg)) {
			continue
		}
		// Other runs of this test may have such processes, too.
		if of, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cgroup")); bytes.Contains(of, []byte(n.cgroup)) {
			found = append(found, filepath.Base(filepath.Dir(f)))
		}
	}
	return found
}

func zombies(parent int) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		body, _ := os.ReadFile(f)
		if i := bytes.LastIndexByte(body, ')'); i > 0 {
			if fields := strings.Fields(string(body[i+1:])); len(fields) > 1 && fields[0] == "Z" &&
				fields[1] == fmt.Sprint(parent) {
				found = append(found, string(body[:i+1]))
			}
		}
	}
	return found
}

// memory returns a process's proportional share of memory, in KB.
func memory(t *testing.T, pid int) int {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		var kb int
		if n, _ := fmt.Sscanf(line, "Pss: %d kB", &kb); n == 1 {
			return kb
		}
	}
	t.Fatal("no Pss")
	return 0
}

// cpu returns the CPU time of a process and its reaped children.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	var ticks time.Duration
	fields := strings.Fields(string(body[bytes.LastIndexByte(body, ')')+1:]))
	for _, f := range fields[11:15] { // utime, stime, cutime, cstime; see proc_pid_stat(5)
		n, err := time.ParseDuration(f + "ns")
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return ticks * 10 * time.Millisecond
}

func threads(pid int) int {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	return len(tasks)
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
