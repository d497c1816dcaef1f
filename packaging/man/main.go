// Command man writes the manual page kuri(1) from the help of the program itself.
//
//	man DATE PROGRAM >kuri.1
//
// DATE is that of the page, YYYY-MM-DD. PROGRAM is a built kuri; the help of each of its verbs, at
// any depth, becomes a section.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: man DATE PROGRAM")
		os.Exit(2)
	}
	p := page{program: os.Args[2], out: bufio.NewWriter(os.Stdout)}
	if err := errors.Join(p.write(os.Args[1]), p.out.Flush()); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

type page struct {
	program string
	out     *bufio.Writer
}

// help is what the program says of a verb, by the headings of its help. What stands above the first
// heading is below "".
type help map[string][]string

// commands is the heading of the verbs below one. A program with groups of verbs has the groups' titles instead.
const commands = "Available Commands"

// headings are those of a help that are no groups of verbs.
var headings = []string{"Usage", "Aliases", "Examples", commands, "Flags", "Global Flags"}

// read splits a help. It is an error when there is no usage in it.
func read(text string) (help, error) {
	h, at := help{}, ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \n")
		if name, ok := strings.CutSuffix(line, ":"); ok && (known(name) || at != "" && !strings.HasPrefix(name, " ")) {
			if at = name; !known(at) { // the title of a group
				at = commands
			}
			if h[at] == nil {
				h[at] = []string{}
			}
			continue
		}
		if strings.HasPrefix(line, `Use "`) {
			continue
		}
		h[at] = append(h[at], line)
	}
	if len(h["Usage"]) == 0 {
		return nil, errors.New("a help without usage")
	}
	for name, lines := range h {
		h[name] = strings.Split(strings.Trim(strings.Join(lines, "\n"), "\n"), "\n")
	}
	return h, nil
}

func known(name string) bool {
	for _, h := range headings {
		if h == name {
			return true
		}
	}
	return false
}

// of asks the program for the help of a verb.
func (p page) of(verb ...string) (help, error) {
	args := append([]string{"help"}, verb...)
	cmd := exec.Command(p.program, args...)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", p.program, strings.Join(args, " "), err)
	}
	h, err := read(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", p.program, strings.Join(args, " "), err)
	}
	return h, nil
}

// command is the first word of a line below the heading of commands.
var command = regexp.MustCompile(`^  ([a-z][a-z-]*) `)

// verbs returns the names of the verbs below one.
func (h help) verbs() []string {
	var names []string
	for _, line := range h[commands] {
		if m := command.FindStringSubmatch(line); m != nil && m[1] != "help" {
			names = append(names, m[1])
		}
	}
	return names
}

func (p page) write(date string) error {
	h, err := p.of()
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, ".TH KURI 1 %s Kuri \"Kuri Manual\"\n.SH NAME\n%s\n", date,
		`kuri \- run and look after pods, containers and images on a CRI runtime`)
	fmt.Fprint(p.out, ".SH SYNOPSIS\n.B kuri\n[\\fIFLAGS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]\n.SH DESCRIPTION\n")
	p.text(h[""])
	fmt.Fprint(p.out, ".SH OPTIONS\nThese stand before or after the command.\n")
	p.flags(h["Flags"])
	fmt.Fprint(p.out, ".SH COMMANDS\n")
	for _, verb := range h.verbs() {
		if err := p.verb(verb); err != nil {
			return err
		}
	}
	fmt.Fprint(p.out, ".SH SEE ALSO\n.BR kurid (8)\n")
	return nil
}

// verb writes the section of a verb and those of the verbs below it.
func (p page) verb(names ...string) error {
	h, err := p.of(names...)
	if err != nil {
		return err
	}
	fmt.Fprintf(p.out, ".SS kuri %s\n", escape(strings.Join(names, " ")))
	p.text(h[""])
	if below := h.verbs(); len(below) > 0 {
		for _, name := range below {
			if err := p.verb(append(names[:len(names):len(names)], name)...); err != nil {
				return err
			}
		}
		return nil
	}
	p.literal(h["Usage"])
	p.flags(h["Flags"])
	if len(h["Examples"]) > 0 {
		fmt.Fprint(p.out, ".PP\nExamples:\n")
		p.literal(h["Examples"])
	}
	return nil
}

// text writes paragraphs, which are filled, and lines that are indented, which are not.
func (p page) text(lines []string) {
	literal := false
	for _, line := range lines {
		if indented := strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t"); indented != literal && line != "" {
			literal = indented
			fmt.Fprintln(p.out, map[bool]string{true: ".nf", false: ".fi"}[literal])
		}
		if line == "" && !literal {
			fmt.Fprintln(p.out, ".PP")
			continue
		}
		fmt.Fprintln(p.out, escape(line))
	}
	if literal {
		fmt.Fprintln(p.out, ".fi")
	}
}

func (p page) literal(lines []string) {
	fmt.Fprint(p.out, ".PP\n.nf\n")
	for _, line := range lines {
		fmt.Fprintln(p.out, escape(line))
	}
	fmt.Fprintln(p.out, ".fi")
}

// flag is a line of the flags: what to type, at least two spaces, what it does.
var flag = regexp.MustCompile(`^ +(-.*?\S)(?:   *(\S.*))?$`)

func (p page) flags(lines []string) {
	for _, line := range lines {
		if m := flag.FindStringSubmatch(line); m != nil {
			fmt.Fprintf(p.out, ".TP\n.B %s\n%s\n", escape(m[1]), escape(m[2]))
		} else {
			fmt.Fprintln(p.out, escape(strings.TrimSpace(line)))
		}
	}
}

// escape makes text safe for roff: backslashes, hyphens that are to be copied, and what is a
// request at the line's beginning.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`, `…`, `...`, "\t", "    ").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
