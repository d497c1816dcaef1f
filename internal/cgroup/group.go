package cgroup

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/process"
)

// Group is the cgroup of a container, or one below it. It holds directory names, and does not keep the cgroup alive: a Group
// whose cgroup was removed has no processes. It is small enough to keep one for each container, and can be stored in a
// record. The zero Group stands for no cgroup.
type Group struct {
	procs  string // the directory that lists the processes: on v1 in the freezer's hierarchy, or another's
	memory string // the directory of the memory controller; "" when there is none
	v2     bool
}

// groupJSON is a Group in a record.
type groupJSON struct {
	Procs  string `json:"procs,omitempty"`
	Memory string `json:"memory,omitempty"`
	V2     bool   `json:"v2,omitempty"`
}

// MarshalJSON makes a Group a part of a record.
func (g Group) MarshalJSON() ([]byte, error) { return json.Marshal(groupJSON{g.procs, g.memory, g.v2}) }

// UnmarshalJSON reads what MarshalJSON has written.
func (g *Group) UnmarshalJSON(body []byte) error {
	var j groupJSON
	err := json.Unmarshal(body, &j)
	*g = Group{j.Procs, j.Memory, j.V2}
	return err
}

// Of returns the Group of the directories of a cgroup by controller, as OCI runtimes record them: absolute paths; on cgroup
// v2 one, with the key "".
func Of(paths map[string]string) Group {
	if path, ok := paths[""]; ok && len(paths) == 1 {
		return Group{procs: path, memory: path, v2: true}
	}
	return Group{procs: paths[ProcsController(paths)], memory: paths["memory"]}
}

// files abstracts the differences between v1 and v2 in a single cgroup: file names, and their effect.
type files interface {
	// frozen reports whether the cgroup dir, or one above it, is frozen or about to be.
	frozen(dir string) bool
	// still reports whether all processes of dir are frozen; true where there is no freezer.
	still(dir string) bool
	freezing() (file, text string)
	thawing() (file, text string)
	// killFrozen reports whether frozen processes die when they are killed, and not only when they run again.
	killFrozen() bool
	// killAll kills all processes of dir and below it at once. It reports false where the kernel cannot.
	killAll(dir string) bool
	// oomEvents is the file with the count of OOM kills.
	oomEvents() string
	// oomBelow reports whether that file counts cgroups below, too, removed ones included.
	oomBelow() bool
	// entry is the file by which a thread moves itself into dir; "" where processes are born in it (CLONE_INTO_CGROUP).
	entry(dir string) string
	// change returns the files that say a change of limits.
	change(paths map[string]string, asked *specs.LinuxResources, l Limits) Change
}

func (g Group) files() files {
	if g.v2 {
		return filesV2{}
	}
	return filesV1{}
}

// Dir is the directory that lists the processes, "" for the zero Group.
func (g Group) Dir() string { return g.procs }

// Entry is the file by which a process enters the cgroup, thread by thread, when it writes "0" there; "" where it is to be
// born in the cgroup instead.
func (g Group) Entry() string { return g.files().entry(g.procs) }

// Sub returns the Group of the cgroup name below. It has no memory controller of its own.
func (g Group) Sub(name string) Group {
	return Group{procs: filepath.Join(g.procs, name), v2: g.v2}
}

// Make makes the directory that lists the processes. One that is there is an error.
func (g Group) Make() error { return os.Mkdir(g.procs, 0o755) }

// Procs lists the processes of the cgroup and of those below it. A cgroup that is gone has none.
func (g Group) Procs() ([]int, error) {
	if g.procs == "" {
		return nil, nil
	}
	var pids []int
	err := processes(g.procs, &pids)
	return pids, err
}

// Signal sends sig to every process of the cgroup. A frozen one takes it when it runs again; see [Group.SignalKill].
func (g Group) Signal(sig unix.Signal) error {
	pids, err := g.Procs()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), pid, err)
		}
	}
	return nil
}

// SignalKill sends SIGKILL to every process of the cgroup, those that are being forked included, and lets frozen ones run
// so that they die of it. It does not wait for their end.
func (g Group) SignalKill() error {
	if g.procs == "" || g.files().killAll(g.procs) {
		return nil
	}
	// A frozen process does not fork; killed ones die when they thaw.
	g.freeze()
	defer g.thaw()
	return g.Signal(unix.SIGKILL)
}

// Kill kills all processes of the cgroup, those that are being forked included, and returns when none is left or after
// limit with an error that names one that stays.
func (g Group) Kill(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		pids, err := g.Procs()
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %s does not die", process.Describe(pids[0]))
		}
		if err := g.SignalKill(); err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

// RemoveInto removes the cgroup, and moves processes that are left in it into the cgroup home. After limit it returns an error: a
// process on its way out can be moved no more. A cgroup that is gone is a success.
func (g Group) RemoveInto(home string, limit time.Duration) error {
	if g.procs == "" {
		return nil
	}
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		err := os.Remove(g.procs)
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		pids, err := g.Procs()
		if err != nil {
			return err
		}
		for _, pid := range pids {
			err := move(pid, home)
			if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrNotExist) { // both may go meanwhile
				return err
			}
		}
		if len(pids) > 0 && os.Remove(g.procs) == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("cgroup %s stays in use", g.procs)
		}
		time.Sleep(pause)
	}
}

// move moves a process into the cgroup dir.
func move(pid int, dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// EINVAL: the process is still being forked (TASK_NEW).
	for range 5 {
		if _, err = f.WriteString(strconv.Itoa(pid)); !errors.Is(err, unix.EINVAL) {
			return err
		}
		time.Sleep(30 * time.Millisecond)
	}
	return err
}

// Birth is the directory in which a process of the group is born (CLONE_INTO_CGROUP), of those by controller: on v2 the
// group's own, in the hybrid layout that of v2, on v1 "" for none.
func (g Group) Birth(paths map[string]string) string {
	if g.v2 {
		return g.procs
	}
	return paths[""]
}

// Entries lists the files by which a process enters a cgroup with those directories by controller, thread by thread, when it
// writes "0" there: one in each hierarchy of v1 but that of the directory without. None on v2, where it is born in it.
func Entries(paths map[string]string, without string) []string {
	var files []string
	for controller, dir := range paths {
		if controller != "" && dir != "" && dir != without {
			files = append(files, filesV1{}.entry(dir))
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// EntriesCPULast is [Entries] of all hierarchies, with that of the CPU's share apart, to be entered last: a process with a
// small share is slow from then on. Last is "" when there is none.
func EntriesCPULast(paths map[string]string) (files []string, last string) {
	cpu := paths["cpu"]
	if cpu != "" {
		last = filesV1{}.entry(cpu)
	}
	return Entries(paths, cpu), last
}

// ControllerDir returns the directory with the files of a controller, of those by controller; "" when there is none.
func ControllerDir(paths map[string]string, controller string) string {
	if dir := paths[controller]; dir != "" {
		return dir
	}
	return paths[""]
}

// Unified reports whether the group has one directory for all controllers.
func (g Group) Unified() bool { return g.v2 }
