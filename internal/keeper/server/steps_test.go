package server_test

import (
	"slices"
	"testing"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// The answers of verbs that start something include their steps in order. A repeated request has
// none.
func TestVerbsTellTheirSteps(t *testing.T) {
	n := newNode(t)
	told := func(verb string, steps []*api.Step, want ...string) {
		t.Helper()
		var names []string
		end := int64(0)
		for _, s := range steps {
			if s.AfterNs < end || s.TookNs < 0 {
				t.Errorf("%s: step %s begins %d ns after the beginning, before the end of the one before, %d", verb, s.Name,
					s.AfterNs, end)
			}
			end = s.AfterNs + s.TookNs
			if !slices.Contains(names, s.Name) {
				names = append(names, s.Name)
			}
		}
		for _, name := range want {
			if !slices.Contains(names, name) {
				t.Errorf("%s: there is no step %s in %v", verb, name, names)
			}
		}
		if len(want) == 0 && len(steps) > 0 {
			t.Errorf("%s: %v, want none", verb, names)
		}
	}
	box := n.sandbox()
	told("CreateSandbox", box.Steps, "record", "namespaces", "shm", "holder")
	j := n.job(box, "exit 0")
	c, err := n.Create(t.Context(), j.CreateRequest)
	n.must(err)
	told("Create", c.Steps, "bundle", "record", "stdio", "mounts", "config", "cgroup", "init")
	c, err = n.Create(t.Context(), j.CreateRequest)
	n.must(err)
	told("Create again", c.Steps)
	c, err = n.Start(t.Context(), j.Id)
	n.must(err)
	told("Start", c.Steps, "record", "startline")
	list, err := n.List(t.Context())
	n.must(err)
	told("List", append(list.Sandboxes[0].Steps, list.Containers[0].Steps...))
	n.wait(j)
	n.must(n.Delete(t.Context(), j.Id))
	n.must(n.RemoveSandbox(t.Context(), box.Id))
}
