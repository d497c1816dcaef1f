package doctor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/network/selector"
	"github.com/kuri-cri/kuri/internal/pod"
)

// Node is the node to be examined.
type Node struct {
	Root, State   string
	ContainerRoot string // "" for none
	Driver        cgroup.Driver
	Cgroups       *cgroup.Hierarchies
	Pods          func() (*pod.Inventory, error)
	Layers        *layer.Store // nil if kurid is stopped
	Network       *selector.Selector

	Sockets []string // paths on which kurid serves the CRI
	RunDir  string   // of kuri run; "": default
	LogDirs []string // of kuri run; empty: defaults
}

// Finding is a resource that nobody owns or that is broken.
type Finding struct {
	Check   string // the check that found it
	Subject string // a path or a name
	Problem string // a sentence without the final period
	Advice  string // what to do
	Fixable bool   // by --fix

	Fixed bool
	Err   error // why the fix failed; nil if it was not tried

	fix func(context.Context) error
}

// Blind is a check that failed to run.
type Blind struct {
	Check string
	Err   error
}

// Report is the outcome of an examination.
type Report struct {
	Findings []Finding
	Blind    []Blind
}

// check is a row of the table.
type check struct {
	name string
	look func(*scene) ([]Finding, error)
}

// checks is the table of checks, in the order in which fixes run: resources that hold others come
// first.
var checks = []check{
	{"pods", brokenPods},
	{"containers", brokenContainers},
	{"files of pods", removedFiles},
	{"mounts of containers", lostMounts},
	{"shared memory", lostShm},
	{"processes", strayProcesses},
	{"network", strayNetwork},
	{"network namespaces", strayNetns},
	{"mounts", strayMounts},
	{"mount points", strayMountPoints},
	{"cgroups", strayCgroups},
	{"records", damagedRecords},
	{"directories of pods", restsOfPods},
	{"writable layers", strayWritables},
	{"layers", layers},
	{"images", brokenImages},
	{"sockets", staleSockets},
	{"locks", staleLocks},
	{"files of kuri run", strayRunFiles},
}

// looks are the delays before further passes, each counted from the previous one.
var looks = []time.Duration{250 * time.Millisecond, 900 * time.Millisecond}

// Examine checks the node and, if fix is set, fixes what it can. The error is that of ctx.
func Examine(ctx context.Context, n Node, fix bool) (Report, error) {
	n.RunDir = orUsual(n.RunDir, "/var/lib/kuri-run")
	if len(n.LogDirs) == 0 {
		n.LogDirs = []string{"/var/log/kuri-run", "/var/log/pods"} // the second of pods that an earlier kuri has run
	}
	report := look(n)
	for _, after := range looks {
		if len(report.Findings) == 0 {
			break
		}
		select {
		case <-time.After(after):
		case <-ctx.Done():
			return Report{}, ctx.Err()
		}
		report = both(report, look(n))
	}
	if !fix {
		return report, nil
	}
	for i := range report.Findings {
		f := &report.Findings[i]
		if f.fix == nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return report, err
		}
		f.Err = f.fix(ctx)
		f.Fixed = f.Err == nil
		slog.Warn("doctor fixes", "check", f.Check, "what", f.Subject, "why", f.Problem, "err", f.Err)
	}
	return report, nil
}

func orUsual(dir, usual string) string {
	if dir == "" {
		return usual
	}
	return dir
}

// look runs all checks once.
func look(n Node) Report {
	var r Report
	s, err := newScene(n)
	if err != nil {
		return Report{Blind: []Blind{{"records", err}}}
	}
	for _, c := range checks {
		found, err := c.look(s)
		if err != nil {
			r.Blind = append(r.Blind, Blind{c.name, err})
		}
		for _, f := range found {
			f.Check, f.Fixable = c.name, f.fix != nil
			if f.Fixable && f.Advice == "" {
				f.Advice = "kuri doctor --fix mends it"
			}
			r.Findings = append(r.Findings, f)
		}
	}
	return r
}

// both returns the findings on which two passes agree, as in the second one.
func both(first, second Report) Report {
	seen := map[[2]string]bool{}
	for _, f := range first.Findings {
		seen[[2]string{f.Check, f.Subject}] = true
	}
	agreed := Report{Blind: second.Blind}
	for _, f := range second.Findings {
		if seen[[2]string{f.Check, f.Subject}] {
			agreed.Findings = append(agreed.Findings, f)
		}
	}
	return agreed
}

// Stopped returns the Node for data directories whose kurid is stopped. The caller holds their
// locks.
func Stopped(root, state, containerRoot string, driver cgroup.Driver, groups *cgroup.Hierarchies,
	n *selector.Selector) Node {
	return Node{
		Root: root, State: state, ContainerRoot: containerRoot, Driver: driver, Cgroups: groups, Network: n,
		Pods: func() (*pod.Inventory, error) {
			// Without the root directory nothing is known, unless this Kuri has never run here.
			if _, err := os.Stat(root); err != nil {
				return nil, fmt.Errorf("look for the records: %w", err)
			}
			return pod.ReadInventory(root, state)
		},
	}
}

// within reports whether path is below dir, and returns the first path element below it.
func within(path, dir string) (first string, ok bool) {
	rel, err := filepath.Rel(dir, path)
	if err != nil || rel == "." || !filepath.IsLocal(rel) {
		return "", false
	}
	for {
		up := filepath.Dir(rel)
		if up == "." {
			return rel, true
		}
		rel = up
	}
}
