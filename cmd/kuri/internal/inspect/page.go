package inspect

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// page is a page of text for people: lines of a name and a value, and lists below a name.
type page struct {
	strings.Builder
	full bool // long lists are not cut off
}

// nameWidth is the width of the names on a page.
const nameWidth = 14

// row adds a line, unless its value is empty.
func (p *page) row(name, value string) {
	if value != "" {
		fmt.Fprintf(p, "%-*s %s\n", nameWidth, name+":", cli.Printable(value))
	}
}

// list adds lines below a name, unless there are none.
func (p *page) list(name string, lines []string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(p, "%s:\n", name)
	for _, line := range lines {
		fmt.Fprintf(p, "  %s\n", cli.Printable(line))
	}
}

// columns adds a table below a name; the first row is its head.
func (p *page) columns(name string, rows [][]string) {
	if len(rows) < 2 {
		return
	}
	var text strings.Builder
	_ = cli.Table(&text, rows) // writing to a Builder does not fail
	p.list(name, strings.Split(strings.TrimRight(text.String(), "\n"), "\n"))
}

// pairs adds a map. It skips keys that begin with one of hidden, unless the page is a full one.
func (p *page) pairs(name string, of map[string]string, hidden ...string) {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(of)) {
		if p.full || !slices.ContainsFunc(hidden, func(h string) bool { return strings.HasPrefix(k, h) }) {
			lines = append(lines, k+"="+of[k])
		}
	}
	p.list(name, lines)
}

// moment formats a time, in nanoseconds since the epoch, with its age; "" for 0.
func moment(nanos int64) string {
	if nanos <= 0 {
		return ""
	}
	return fmt.Sprintf("%s  (%s ago)", time.Unix(0, nanos).Format(time.DateTime), cli.Age(nanos))
}

// shellWords joins words, quoted as a shell needs them.
func shellWords(list []string) string {
	var out []string
	for _, w := range list {
		if w == "" || strings.ContainsAny(w, " \t\n'\"\\$`;&|<>*?()") || !utf8.ValidString(w) {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		out = append(out, w)
	}
	return strings.Join(out, " ")
}
