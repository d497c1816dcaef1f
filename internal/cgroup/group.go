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

// Group is the cgroup of a container, or one below it. It holds directory names and does not keep
// the cgroup alive: if the cgroup was removed, the Group has no processes. It is small enough to
// keep one for each container, and can be part of a record. The zero Group means no cgroup.
type Group struct {
	procs  string // directory that lists the processes: on v1 in the freezer's hierarchy, or another's
	memory string // directory of the memory controller; "" for none
	v2     bool
}

// groupJSON is the encoding of a Group in a record.
type groupJSON struct {
	Procs  string `json:"procs,omitempty"`
	Memory string `json:"memory,omitempty"`
	V2     bool   `json:"v2,omitempty"`
}

// MarshalJSON encodes a Group as part of a record.
func (g Group) MarshalJSON() ([]byte, error) { return json.Marshal(groupJSON{g.procs, g.memory, g.v2}) }

// UnmarshalJSON decodes the output of MarshalJSON.
func (g *Group) UnmarshalJSON(body []byte) error {
	var j groupJSON
	err := json.Unmarshal(body, &j)
	*g = Group{j.Procs, j.Memory, j.V2}
	return err
}

// Of returns the Group of the cgroup with these directories by controller, as OCI runtimes record
// them: absolute paths, and on cgroup v2 only one, with the key "".
func Of(paths map[string]string) Group {
	if path, ok := paths[""]; ok && len(paths) == 1 {
		return Group{procs: path, memory: path, v2: true}
	}
	return Group{procs: paths[ProcsController(paths)], memory: paths["memory"]}
}

// files abstracts the differences between v1 and v2 for a single cgroup: file names and semantics.
type files interface {
	// frozen reports whether the cgroup dir, or one above it, is frozen or about to be.
	frozen(dir string) bool
	// still reports whether all processes of dir are frozen. It is true without a freezer.
	still(dir string) bool
	freezing() (file, text string)
	thawing() (file, text string)
	// killFrozen reports whether frozen processes die when they are killed, without a thaw.
	killFrozen() bool
	// killAll kills all processes of dir and below it at once. It returns false if the kernel does
	// not support that.
	killAll(dir string) bool
	// oomEvents returns the name of the file with the count of OOM kills.
	oomEvents() string
	// oomBelow reports whether that file also counts cgroups below, including removed ones.
	oomBelow() bool
	// entry returns the file through which a thread moves itself into dir; "" if processes are
	// created in it (CLONE_INTO_CGROUP).
	entry(dir string) string
	// change returns the files and values of a change of limits.
	change(paths map[string]string, asked *specs.LinuxResources, l Limits) Change
}

func (g Group) files() files {
	if g.v2 {
		return filesV2{}
	}
	return filesV1{}
}

// Dir returns the directory that lists the processes; "" for the zero Group.
func (g Group) Dir() string { return g.procs }

// Entry returns the file through which a process enters the cgroup: each thread writes "0" there.
// It returns "" if the process must be created in the cgroup instead.
func (g Group) Entry() string { return g.files().entry(g.procs) }

// Sub returns the Group of the cgroup name below this one. It has no memory controller of its own.
func (g Group) Sub(name string) Group {
	return Group{procs: filepath.Join(g.procs, name), v2: g.v2}
}

// Make creates the directory that lists the processes. It fails if that exists.
func (g Group) Make() error { return os.Mkdir(g.procs, 0o755) }

// Procs returns the processes of the cgroup and those below it. A removed cgroup has none.
func (g Group) Procs() ([]int, error) {
	if g.procs == "" {
		return nil, nil
	}
	var pids []int
	err := processes(g.procs, &pids)
	return pids, err
}

// Signal sends sig to every process of the cgroup. A frozen process receives it after the thaw; see
// [Group.SignalKill].
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

// SignalKill sends SIGKILL to every process of the cgroup, including processes that are being
// forked, and thaws frozen ones so that they die. It does not wait for their end.
func (g Group) SignalKill() error {
	if g.procs == "" || g.files().killAll(g.procs) {
		return nil
	}
	// A frozen process does not fork; killed ones die when they thaw.
	g.freeze()
	defer g.thaw()
	return g.Signal(unix.SIGKILL)
}

// Kill kills all processes of the cgroup, including processes that are being forked. It returns
// when none is left, or after limit with an error that names a remaining process.
func (g Group) Kill(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		pids, err := g.Procs()
		if err != nil || len(pids) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %s does not die", process.Describe(process.Stuck(pids)))
		}
		if err := g.SignalKill(); err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

// RemoveInto removes the cgroup, and moves its remaining processes into the cgroup home. It does
// nothing if the cgroup is gone. It returns an error after limit, because an exiting process cannot
// be moved.
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
			if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, os.ErrNotExist) { // both may be gone by now
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

// Birth returns the directory in which a process of the group is created (CLONE_INTO_CGROUP), for
// the directories paths by controller: the group's own on v2, that of the v2 hierarchy in the
// hybrid layout, and "" on v1.
func (g Group) Birth(paths map[string]string) string {
	if g.v2 {
		return g.procs
	}
	return paths[""]
}

// Entries returns the files through which a process enters the cgroup with the directories paths by
// controller: each thread writes "0" there. There is one in each v1 hierarchy, except for the
// directory without. There are none on v2, where the process is created in the cgroup.
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

// EntriesCPULast returns the [Entries] of all hierarchies, with the one of the CPU controller
// separate as last. It should be entered last, because a small CPU share makes the process slow.
// last is "" if there is none.
func EntriesCPULast(paths map[string]string) (files []string, last string) {
	cpu := paths["cpu"]
	if cpu != "" {
		last = filesV1{}.entry(cpu)
	}
	return Entries(paths, cpu), last
}

// ControllerDir returns the directory with a controller's files, from the directories paths by
// controller; "" for none.
func ControllerDir(paths map[string]string, controller string) string {
	if dir := paths[controller]; dir != "" {
		return dir
	}
	return paths[""]
}

// Unified reports whether the group has one directory for all controllers.
func (g Group) Unified() bool { return g.v2 }
