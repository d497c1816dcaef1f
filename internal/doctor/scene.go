package doctor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/process"
)

// scene is the state of the node in one pass.
type scene struct {
	Node
	pods   *pod.Inventory
	runs   map[string][]int // processes by the ids in their cgroup paths
	netns  map[string][]int // processes by network namespace, as in their /proc link
	others []string         // state directories of other Kuris with a running keeper
}

func newScene(n Node) (*scene, error) {
	s := &scene{Node: n}
	var err error
	if s.pods, err = n.Pods(); err != nil {
		return nil, err
	}
	if s.runs, s.netns, s.others, err = processes(n.State); err != nil {
		return nil, err
	}
	return s, nil
}

// idForm matches the ids of pods and containers.
var idForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[0-9a-f]{64}`) })

// isID reports whether name is the id of a pod or a container.
func isID(name string) bool { return len(name) == 64 && idForm().MatchString(name) }

// processes returns the running processes by id and by network namespace, and the state directories
// of keepers other than that of state.
func processes(state string) (byID, byNetns map[string][]int, others []string, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, nil, nil, fmt.Errorf("list the processes: %w", err)
	}
	byID, byNetns = map[string][]int{}, map[string][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		groups, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if err != nil {
			continue // it has ended
		}
		ids := idForm().FindAllString(string(groups), -1)
		slices.Sort(ids)
		for _, id := range slices.Compact(ids) {
			byID[id] = append(byID[id], pid)
		}
		if ns, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns", "net")); err == nil {
			byNetns[ns] = append(byNetns[ns], pid)
		}
		if other := keeperState(e.Name()); other != "" && other != filepath.Clean(state) {
			others = append(others, other)
		}
	}
	return byID, byNetns, others, nil
}

// keeperState returns the state directory of a keeper or holder process, or "" for any other
// process.
func keeperState(pid string) string {
	line, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	if err != nil {
		return ""
	}
	args := strings.Split(string(bytes.TrimRight(line, "\x00")), "\x00")
	if name := filepath.Base(args[0]); name != "kuri-keeper" && name != "kuri-holder" {
		return ""
	}
	for i, arg := range args[:len(args)-1] {
		if arg == "--state" {
			return filepath.Clean(args[i+1])
		}
	}
	return ""
}

// unowned reports whether id is the id of a pod or container that is unknown, here and to other
// Kuris.
func (s *scene) unowned(id string) bool {
	if !isID(id) || s.pods.Known(id) {
		return false
	}
	for _, state := range s.others {
		for _, path := range []string{"pods/" + id, "keeper/sandboxes/" + id + ".json",
			"keeper/containers/" + id + ".json"} {
			if _, err := os.Lstat(filepath.Join(state, path)); err == nil {
				return false
			}
		}
		if found, _ := filepath.Glob(filepath.Join(state, "pods", "*", "containers", id)); len(found) > 0 {
			return false
		}
	}
	return true
}

// unknownRuns reports whether a pod or container may be running whose resources are not known.
func (s *scene) unknownRuns() bool {
	return len(s.pods.HeldAlone()) > 0 || slices.ContainsFunc(s.pods.Rests, func(r pod.Rest) bool {
		return s.pods.Held[r.ID] || len(s.runs[r.ID]) > 0
	})
}

// stillUnused returns an error if a process is in a cgroup of the id now.
func (s *scene) stillUnused(id string) error {
	byID, _, _, err := processes(s.State)
	if err != nil {
		return err
	}
	if pids := byID[id]; len(pids) > 0 {
		return fault.New(fault.Precondition, "%s runs in it", describe(pids))
	}
	return nil
}

// describe names processes for a message.
func describe(pids []int) string {
	text := fmt.Sprintf("process %d (%s)", pids[0], process.Name(pids[0]))
	if more := len(pids) - 1; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
