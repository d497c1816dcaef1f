package harness

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// Traces has the objects that can leak, one line for each, by kind. Traces of one cell can be
// compared over time.
type Traces map[string][]string

// traceSources has a reader for each kind of trace.
var traceSources = map[string]func() ([]string, error){
	"mounts":             mounts,
	"network namespaces": func() ([]string, error) { return tree("/run/netns") },
	"links":              command("ip", "-o", "link", "show"),
	"addresses":          command("ip", "-o", "address", "show"),
	"routes":             routes,
	"firewall":           command("nft", "-s", "list", "ruleset"),
	"cgroups":            cgroups,
	"processes":          processes,
}

// Observe reads the traces of the whole cell, and of the files below dirs.
func Observe(dirs ...string) (Traces, error) {
	seen := Traces{}
	for kind, read := range traceSources {
		lines, err := read()
		if err != nil {
			return nil, fmt.Errorf("observe %s: %w", kind, err)
		}
		slices.Sort(lines)
		seen[kind] = lines
	}
	for _, d := range dirs {
		lines, err := tree(d)
		if err != nil {
			return nil, fmt.Errorf("observe files: %w", err)
		}
		seen["files"] = append(seen["files"], lines...)
	}
	return seen, nil
}

// Beyond returns a line, "kind: object", for each object that other does not have, of the kinds
// that other has.
func (seen Traces) Beyond(other Traces) []string {
	var more []string
	for kind, lines := range other {
		for _, l := range seen[kind] {
			if !slices.Contains(lines, l) {
				more = append(more, kind+": "+l)
			}
		}
	}
	slices.Sort(more)
	return more
}

// CheckLeaks fails t if there are more objects than before. It allows half a minute for them to go. The
// kernel removes namespaces, links and cgroups some time after the last process that used them. A keeper
// keeps the record of an exec for ten seconds if its caller died together with the previous keeper.
func CheckLeaks(t testing.TB, when string, before Traces, dirs ...string) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(Patient(30 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
		now, err := Observe(dirs...)
		if err != nil {
			t.Error(err)
			return
		}
		if left = now.Beyond(before); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	t.Errorf("%s, this is left that was not there before:\n\t%s", when, strings.Join(left, "\n\t"))
}

// unplugged reports whether a trace is the link of a pod that another daemon has detached: it is
// off the bridge and down, and disappears within a second.
func unplugged(trace string) bool {
	return strings.HasPrefix(trace, "links: kuri") && strings.Contains(trace, "<BROADCAST,MULTICAST>")
}

// CheckLosses fails t if an object from before is missing.
func CheckLosses(t testing.TB, when string, before Traces) {
	t.Helper()
	now, err := Observe()
	if err != nil {
		t.Error(err)
		return
	}
	delete(now, "mounts") // the machine's own disappear from the cell too, when their mount point is removed
	if gone := slices.DeleteFunc(before.Beyond(now), unplugged); len(gone) > 0 {
		t.Errorf("%s, this is gone that was there before:\n\t%s", when, strings.Join(gone, "\n\t"))
	}
}

// mounts lists the mounts without their ids, which always increase.
func mounts() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		before, after, _ := strings.Cut(strings.Join(f[3:], " "), " - ")
		point := strings.Fields(before)[1]
		out = append(out, point+" ("+after+")")
	}
	return out, nil
}

// cgroups lists the directories of every hierarchy.
func cgroups() ([]string, error) {
	var out []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // it was removed while the walk was running
		}
		if d.IsDir() {
			out = append(out, p)
		}
		return nil
	})
	return out, err
}

// processes lists every process of the cell with its pid. A zombie is marked.
func processes() ([]string, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range dirs {
		stat, err := os.ReadFile(d + "/stat")
		if err != nil {
			continue // it exited while we looked
		}
		args, _ := os.ReadFile(d + "/cmdline")
		text := strings.TrimSpace(string(bytes.ReplaceAll(args, []byte{0}, []byte{' '})))
		if end := bytes.LastIndexByte(stat, ')'); end >= 0 && bytes.HasPrefix(stat[end:], []byte(") Z")) {
			text = "zombie " + string(stat[bytes.IndexByte(stat, '('):end+1])
		}
		if strings.HasPrefix(text, "ip -o ") || strings.HasPrefix(text, "nft -s ") {
			continue // this process
		}
		out = append(out, filepath.Base(d)+" "+text)
	}
	return out, nil
}

func routes() ([]string, error) {
	var out []string
	for _, version := range []string{"-4", "-6"} {
		lines, err := command("ip", version, "-o", "route", "show", "table", "all")()
		if err != nil {
			return nil, err
		}
		out = append(out, lines...)
	}
	return out, nil
}

// id matches the id in names that belong to one pod or container.
var id = regexp.MustCompile(`[0-9a-f]{64}`)

// tree lists the files below dir, without dir itself. An absent dir is empty. Directories that belong to no
// pod are omitted, because the programs keep them for later use; their contents are listed.
func tree(dir string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return nil
		}
		if d.IsDir() && !id.MatchString(p) {
			return nil
		}
		out = append(out, p)
		return nil
	})
	return out, err
}

// counting matches values that change by themselves in the output of ip and nft: counters, times,
// the address of a bridge and whether it has a port.
var counting = regexp.MustCompile(`(valid_lft|preferred_lft|expires) \S+|^\d+: |link/ether \S+|NO-CARRIER,|state (UP|DOWN) | linkdown`)

// command returns a reader of the lines that a command prints.
func command(name string, args ...string) func() ([]string, error) {
	return func() ([]string, error) {
		var said bytes.Buffer
		cmd := exec.Command(name, args...)
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w: %s", cmd, err, said.String())
		}
		var lines []string
		for line := range strings.Lines(string(out)) {
			if line = strings.TrimRight(counting.ReplaceAllString(line, ""), " \n"); line != "" {
				lines = append(lines, line)
			}
		}
		return lines, nil
	}
}
