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
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/pod"
)

// Node is what is examined.
type Node struct {
	Root, State   string
	ContainerRoot string // "" for none
	Driver        cgroup.Driver
	Cgroups       *cgroup.Hierarchies
	Pods          func() (*pod.Inventory, error)
	Layers        *layer.Store // nil while kurid is stopped
	Network       *network.Select

	RunDir  string   // of kuri run; "" for the usual one
	LogDirs []string // of kuri run; none for the usual ones
}

// Finding is one thing that nobody owns, or that is broken.
type Finding struct {
	Check   string // the row of the table that found it
	Subject string // a path or a name
	Problem string // what is wrong, as a sentence without its end
	Advice  string // what to do
	Fixable bool   // by a fix

	Fixed bool
	Err   error // why it could not be fixed; nil where that was not tried

	fix func(context.Context) error
}

// Blind is a check that could not look.
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

// checks is the table, in the order in which fixes run: what holds something else comes first.
var checks = []check{
	{"pods", brokenPods},
	{"containers", brokenContainers},
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

// looks are the times of a second look and of those after it, counted from the look before.
var looks = []time.Duration{250 * time.Millisecond, 900 * time.Millisecond}

// Examine looks at the node, and with fix mends what can be mended. The error is that of ctx.
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
			continue
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

// both returns what two looks agree on, as the second one has it.
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

// Stopped returns the Node of a data directory whose kurid is stopped. The caller holds its locks.
func Stopped(root, state, containerRoot string, driver cgroup.Driver, groups *cgroup.Hierarchies, n *network.Select) Node {
	return Node{
		Root: root, State: state, ContainerRoot: containerRoot, Driver: driver, Cgroups: groups, Network: n,
		Pods: func() (*pod.Inventory, error) {
			// Of a root that is not there at all nothing is known, unless this Kuri has never run here.
			if _, err := os.Stat(root); err != nil {
				return nil, fmt.Errorf("look for the records: %w", err)
			}
			return pod.ReadInventory(root, state)
		},
	}
}

// within reports whether path is below dir, and returns the first name below it.
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
