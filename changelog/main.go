// Command changelog makes the section of a version in CHANGELOG.md out of one file per change, and checks those files.
//
//	go run ./changelog check            every file in changelog/unreleased is as it must be
//	go run ./changelog show             print what the next section will say
//	go run ./changelog release 0.2.0    write the section, or add to it where it is there, and remove the files
//
// A change is a file KIND-AREA-WORDS.md. It holds Markdown: what a user notices, in one paragraph.
// KIND is the heading that the paragraph goes below; AREA and WORDS sort it among its neighbours.
// The file summary.md, which need not be there, is the text above the headings.
//
// A fix ends with the first release that had the bug, "(since 0.2.0)": users never met a bug that
// was made and mended between two releases, and the changelog does not bother them with it.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// kind is a heading and the first word of the names of files below it.
type kind struct{ name, heading string }

// kinds stand in the order in which a reader wants them.
var kinds = []kind{
	{"added", "Added"},
	{"changed", "Changed"},
	{"removed", "Removed"},
	{"security", "Security"},
	{"fixed", "Fixed"},
}

var (
	fileName    = regexp.MustCompile(`^([a-z]+)-[a-z0-9]+(-[a-z0-9]+)+\.md$`)
	versionName = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+$`)
	since       = regexp.MustCompile(`\(since ([0-9]+\.[0-9]+\.[0-9]+)\)$`)
	section     = regexp.MustCompile(`(?m)^## ([0-9]+\.[0-9]+\.[0-9]+)\b.*$`)
)

// change is one file.
type change struct{ kind, text string }

// notes is everything in changelog/unreleased.
type notes struct {
	summary string
	changes []change
	files   []string // to be removed once the section is written
}

func main() {
	if err := run(os.Args[1:], ".", time.Now()); err != nil {
		fmt.Fprintln(os.Stderr, "changelog:", err)
		os.Exit(1)
	}
}

// run is the program in the repository at root.
func run(args []string, root string, now time.Time) error {
	file := filepath.Join(root, "CHANGELOG.md")
	body, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	n, err := read(filepath.Join(root, "changelog", "unreleased"), string(body))
	switch {
	case len(args) == 1 && args[0] == "check":
		return errors.Join(err, checkFile(string(body)))
	case len(args) == 1 && args[0] == "show":
		if err != nil {
			return err
		}
		fmt.Print(n.markdown())
		return nil
	case len(args) == 2 && args[0] == "release":
		if err := errors.Join(err, checkFile(string(body))); err != nil {
			return err
		}
		text, err := release(string(body), n, args[1], now)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		for _, f := range n.files {
			if err := os.Remove(f); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.New("usage: go run ./changelog check | show | release VERSION")
}

// read reads the files in dir. Fixes must name a release that log, the text of CHANGELOG.md, has a section for.
func read(dir, log string) (notes, error) {
	var n notes
	entries, err := os.ReadDir(dir)
	if err != nil {
		return n, err
	}
	var bad []error
	for _, e := range entries { // sorted by name
		path := filepath.Join(dir, e.Name())
		body, err := os.ReadFile(path)
		if err != nil {
			return n, err
		}
		text := strings.TrimSpace(string(body))
		if e.Name() == "README.md" {
			continue
		}
		n.files = append(n.files, path)
		if e.Name() == "summary.md" {
			n.summary = text
			continue
		}
		c := change{text: text}
		if m := fileName.FindStringSubmatch(e.Name()); m != nil {
			c.kind = m[1]
		}
		if err := c.check(log); err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", path, err))
		}
		n.changes = append(n.changes, c)
	}
	return n, errors.Join(bad...)
}

// check says what is wrong with a change.
func (c change) check(log string) error {
	if !slices.ContainsFunc(kinds, func(k kind) bool { return k.name == c.kind }) {
		return fmt.Errorf("the name must be KIND-AREA-WORDS.md in lower case, KIND one of %s", names())
	}
	if c.text == "" {
		return errors.New("is empty: say what a user notices")
	}
	if strings.Contains(c.text, "\n\n") {
		return errors.New("has several paragraphs: a change is one; make a file for each")
	}
	for line := range strings.Lines(c.text) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "- ") {
			return fmt.Errorf("has a heading or a list: %q; the section gives both", line)
		}
	}
	m := since.FindStringSubmatch(c.text)
	switch {
	case c.kind != "fixed" && !strings.HasSuffix(c.text, "."):
		return errors.New("does not end with a full stop")
	case c.kind == "fixed" && m == nil:
		return errors.New(`a fix ends with the first release that had the bug, as in "(since 0.2.0)"; ` +
			"a bug that no release had is not told")
	case c.kind == "fixed" && !slices.Contains(versions(log), m[1]):
		return fmt.Errorf("CHANGELOG.md has no release %s", m[1])
	}
	return nil
}

func names() string {
	var all []string
	for _, k := range kinds {
		all = append(all, k.name)
	}
	return strings.Join(all, ", ")
}

// versions returns the versions that have a section, newest first.
func versions(log string) []string {
	var all []string
	for _, m := range section.FindAllStringSubmatch(log, -1) {
		all = append(all, m[1])
	}
	return all
}

// checkFile refuses changes that were written into CHANGELOG.md itself, above its first section.
func checkFile(log string) error {
	head := log
	if at := section.FindStringIndex(log); at != nil {
		head = log[:at[0]]
	}
	for line := range strings.Lines(head) {
		if strings.HasPrefix(line, "- ") {
			return fmt.Errorf("CHANGELOG.md: %q stands above the first release: put it in a file, changelog/unreleased/KIND-AREA-WORDS.md",
				strings.TrimSpace(line))
		}
	}
	return nil
}

// markdown is the body of the section: the summary, then the changes below the headings of their kinds.
func (n notes) markdown() string {
	var b strings.Builder
	if n.summary != "" {
		fmt.Fprintf(&b, "%s\n\n", n.summary)
	}
	for _, k := range kinds {
		var items []string
		for _, c := range n.changes {
			if c.kind == k.name {
				items = append(items, item(c.text))
			}
		}
		if len(items) > 0 {
			fmt.Fprintf(&b, "### %s\n\n%s\n", k.heading, strings.Join(items, ""))
		}
	}
	return b.String()
}

// item is a paragraph as an item of a list.
func item(text string) string {
	return "- " + strings.ReplaceAll(text, "\n", "\n  ") + "\n"
}

// release returns log with a section for version that has these notes. Where the section is there
// already, as while a release is being prepared, they are added to it.
func release(log string, n notes, version string, now time.Time) (string, error) {
	if !versionName.MatchString(version) {
		return "", fmt.Errorf("a version is MAJOR.MINOR.PATCH, not %q", version)
	}
	if len(n.changes) == 0 && n.summary == "" {
		return "", errors.New("changelog/unreleased has no changes")
	}
	heading := fmt.Sprintf("## %s, %s\n\n", version, now.UTC().Format("2 January 2006"))
	all := section.FindAllStringSubmatchIndex(log, -1)
	if len(all) == 0 {
		return strings.TrimRight(log, "\n") + "\n\n" + heading + strings.TrimRight(n.markdown(), "\n") + "\n", nil
	}
	first := all[0]
	newest := log[first[2]:first[3]]
	switch order := compare(version, newest); {
	case order < 0 || order == 0 && n.summary != "":
		return "", fmt.Errorf("CHANGELOG.md has %s already; a new section must be of a higher version, and one that is there keeps its summary", newest)
	case order > 0:
		return log[:first[0]] + heading + n.markdown() + log[first[0]:], nil
	}
	end := len(log)
	if len(all) > 1 {
		end = all[1][0]
	}
	merged, err := merge(log[first[1]:end], n)
	if err != nil {
		return "", err
	}
	rest := log[end:]
	if rest == "" {
		merged = strings.TrimRight(merged, "\n") + "\n"
	}
	return log[:first[0]] + heading + merged + rest, nil
}

// merge puts the changes at the end of what a section has below each heading.
func merge(body string, n notes) (string, error) {
	parts := strings.Split(strings.Trim(body, "\n"), "\n### ")
	summary := parts[0]
	if strings.HasPrefix(summary, "### ") {
		parts, summary = append([]string{""}, parts...), ""
		parts[1] = strings.TrimPrefix(parts[1], "### ")
	}
	have := map[string]string{}
	for _, p := range parts[1:] {
		heading, items, _ := strings.Cut(p, "\n")
		if !slices.ContainsFunc(kinds, func(k kind) bool { return k.heading == heading }) {
			return "", fmt.Errorf("CHANGELOG.md: unknown heading %q in the newest section", heading)
		}
		have[heading] = strings.Trim(items, "\n") + "\n"
	}
	for _, c := range n.changes {
		for _, k := range kinds {
			if k.name == c.kind {
				have[k.heading] += item(c.text)
			}
		}
	}
	var b strings.Builder
	if summary = strings.Trim(summary, "\n"); summary != "" {
		fmt.Fprintf(&b, "%s\n\n", summary)
	}
	for _, k := range kinds {
		if items := have[k.heading]; items != "" {
			fmt.Fprintf(&b, "### %s\n\n%s\n", k.heading, items)
		}
	}
	return b.String(), nil
}

// compare orders two versions by their numbers.
func compare(a, b string) int {
	x, y := strings.Split(a, "."), strings.Split(b, ".")
	for i := range x {
		if order := cmp.Or(cmp.Compare(len(x[i]), len(y[i])), cmp.Compare(x[i], y[i])); order != 0 {
			return order
		}
	}
	return 0
}
