package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/kuri-cri/kuri/internal/pod"
)

// strayCgroups finds empty cgroups of pods and containers that are gone.
func strayCgroups(s *scene) ([]Finding, error) {
	dirs, err := s.ownCgroups()
	if err != nil {
		return nil, err
	}
	var found []Finding
	for dir, id := range dirs {
		pids, err := s.Cgroups.Pids(dir)
		if err != nil {
			return nil, err
		}
		if len(pids) > 0 {
			continue // reported by strayProcesses
		}
		found = append(found, Finding{
			Subject: dir, Problem: "it is the cgroup of a pod or a container that is gone, and has no process",
			fix: func(context.Context) error { return errors.Join(s.stillUnused(id), s.Cgroups.Remove(dir)) },
		})
	}
	slices.SortFunc(found, func(a, b Finding) int { return strings.Compare(a.Subject, b.Subject) })
	return found, nil
}

// ownCgroups returns the cgroups that belong to Kuri by their names but to no known pod or
// container, with the id: those of pods without a cgroup parent, those with Kuri's prefix anywhere,
// and those of containers below a known pod.
func (s *scene) ownCgroups() (map[string]string, error) {
	parents := map[string]bool{}
	for _, r := range s.pods.Sandboxes {
		if dir, err := s.Driver.Dir(r.CgroupParent); err == nil && r.PodCgroup {
			parents[dir] = true
		}
	}
	own := map[string]string{}
	for _, root := range s.Cgroups.Main() {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil // removed meanwhile
			}
			if !d.IsDir() || path == root {
				return nil
			}
			dir := strings.TrimPrefix(path, strings.TrimSuffix(root, "/"))
			id := cgroupID(filepath.Base(dir))
			if id == "" && parents[filepath.Dir(dir)] {
				id = containerID(filepath.Base(dir))
			}
			if id == "" || !s.unowned(id) {
				return nil
			}
			own[dir] = id
			return fs.SkipDir
		})
		if err != nil {
			return nil, fmt.Errorf("list the cgroups: %w", err)
		}
	}
	return own, nil
}

// cgroupID returns the id in a cgroup name that only Kuri uses, or "".
func cgroupID(name string) string {
	for _, form := range [][2]string{{"kuri-", ""}, {"kuri_", ".slice"}, {"kuri-", ".scope"}} {
		id, ok := strings.CutPrefix(name, form[0])
		if id, ends := strings.CutSuffix(id, form[1]); ok && ends && isID(id) {
			return id
		}
	}
	return ""
}

// containerForm matches the cgroup names of containers, with either driver and any scope prefix.
var containerForm = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:.*-)?([0-9a-f]{64})(?:\.scope)?$`)
})

// containerID returns the id in the name of a container's cgroup, or "".
func containerID(name string) string {
	if m := containerForm().FindStringSubmatch(name); m != nil {
		return m[1]
	}
	return ""
}

// strayProcesses finds processes in Kuri's cgroups that belong to no container or to an exited one.
// They are never killed.
func strayProcesses(s *scene) ([]Finding, error) {
	dirs, err := s.ownCgroups()
	if err != nil {
		return nil, err
	}
	for id, r := range s.pods.Containers {
		if dir, err := s.Driver.Dir(r.CgroupsPath); err == nil && r.State == pod.Exited && r.CgroupsPath != "" {
			dirs[dir] = id
		}
	}
	var found []Finding
	for dir, id := range dirs {
		pids, err := s.Cgroups.Pids(dir)
		if err != nil {
			return nil, err
		}
		if len(pids) == 0 {
			continue
		}
		f := Finding{Subject: fmt.Sprintf("%s in cgroup %s", describe(pids), dir),
			Problem: "it runs, and no pod has it",
			Advice:  fmt.Sprintf("look at it; kill %d ends it, and kuri doctor --fix removes the rest", pids[0])}
		if r := s.pods.Containers[id]; r != nil {
			f.Problem = "it runs, and " + r.Name() + " is told as exited"
			f.Advice = fmt.Sprintf("look at it; kill %d ends it, and so does removing the container", pids[0])
		}
		found = append(found, f)
	}
	slices.SortFunc(found, func(a, b Finding) int { return strings.Compare(a.Subject, b.Subject) })
	return found, nil
}

// brokenPods finds pods whose shared resources are gone, and pods and containers that only the
// keeper knows.
func brokenPods(s *scene) ([]Finding, error) {
	var found []Finding
	for _, id := range s.pods.SandboxIDs() {
		r := s.pods.Sandboxes[id]
		if !r.OfThisBoot() {
			continue // kurid handles it at start
		}
		if why := r.Missing(s.Driver, s.Cgroups); why != "" {
			found = append(found, Finding{
				Subject: r.Name(), Problem: why,
				Advice: fmt.Sprintf("kuri rm -f id:%.13s removes the pod with what is left of it; a kubelet makes "+
					"another by itself", id),
			})
		}
	}
	for _, id := range s.pods.HeldAlone() {
		found = append(found, Finding{
			Subject: id, Problem: "the keeper holds this pod or container, and kurid has no record of it",
			Advice: "restart kurid: it takes it in as unknown, and it can be stopped and removed then",
		})
	}
	return found, nil
}

// brokenContainers finds containers with state running but without a cgroup or a process.
func brokenContainers(s *scene) ([]Finding, error) {
	var found []Finding
	for _, id := range s.pods.ContainerIDs() {
		r := s.pods.Containers[id]
		if r.State != pod.Running || r.CgroupsPath == "" {
			continue
		}
		if box := s.pods.Sandboxes[r.SandboxID]; box != nil && !box.OfThisBoot() {
			continue
		}
		dir, err := s.Driver.Dir(r.CgroupsPath)
		if err != nil {
			return nil, err
		}
		f := Finding{Subject: r.Name(),
			Advice: fmt.Sprintf("kuri rm -f id:%.13s removes it; a kubelet makes another by itself", id)}
		pids, err := s.Cgroups.Pids(dir)
		switch {
		case err != nil:
			return nil, err
		case len(s.Cgroups.Roots(dir)) == 0:
			f.Problem = "it is told as running, and its cgroup is gone: " + dir
		case len(pids) == 0:
			f.Problem = "it is told as running, and no process is in its cgroup " + dir
		default:
			continue
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", r.Pid)); err == nil && r.Pid > 0 {
			f.Problem += fmt.Sprintf("; process %d goes on", r.Pid)
		}
		found = append(found, f)
	}
	return found, nil
}
