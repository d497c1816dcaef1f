package suite

import (
	"encoding/xml"
	"fmt"
	"os"
	"strings"
	"testing"
)

// Spec is one spec of a report.
type Spec struct {
	Name   string
	Status string // in ginkgo's terms: passed, failed, skipped, timedout, …
	Output string // of a spec that failed
	Reason string // why a spec skipped itself; "" if it was filtered out
}

// ReadReport reads the specs of a JUnit report written by ginkgo, and removes prefix from their
// names. A failed setup counts as a spec.
func ReadReport(path, prefix string) ([]Spec, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var report struct {
		Suites []struct {
			Cases []struct {
				Name    string `xml:"name,attr"`
				Status  string `xml:"status,attr"`
				Output  string `xml:"system-err"`
				Failure struct {
					Text string `xml:",chardata"`
				} `xml:"failure"`
				Skipped struct {
					Message string `xml:"message,attr"`
				} `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &report); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var out []Spec
	for _, s := range report.Suites {
		for _, c := range s.Cases {
			name, isSpec := strings.CutPrefix(c.Name, prefix)
			if isSpec || c.Status != "passed" {
				_, reason, _ := strings.Cut(c.Skipped.Message, "skipped - ")
				out = append(out, Spec{Name: name, Status: c.Status, Output: c.Output + c.Failure.Text, Reason: reason})
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no spec", path)
	}
	return out, nil
}

// Expectation is a line of the list.
type Expectation struct {
	Pass   bool
	Reason string // why it need not pass
}

// Condition is an additional verb of the list, for specs that must pass only on some machines.
type Condition struct {
	Holds  bool
	Reason string // why the specs need not pass unless it holds; "": the suite does not have them then
}

// ReadExpected reads a list: "pass NAME" for a spec that must pass, "skip NAME # reason" for one
// that need not, and the verbs of conditions. Lines that begin with "#" are comments.
func ReadExpected(path string, conditions map[string]Condition) (map[string]Expectation, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := map[string]Expectation{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		if line == "" || verb == "#" {
			continue
		}
		name, want, err := parse(verb, rest, conditions)
		if err != nil {
			return nil, fmt.Errorf("%s: %q: %w", path, line, err)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%s: %q is listed twice", path, name)
		}
		if want != nil {
			out[name] = *want
		}
	}
	return out, nil
}

// parse reads one line. It returns no expectation for a spec that the suite does not have here.
func parse(verb, rest string, conditions map[string]Condition) (name string, _ *Expectation, err error) {
	if rest == "" {
		return "", nil, fmt.Errorf("it names no spec")
	}
	switch c, known := conditions[verb]; {
	case verb == "pass", known && c.Holds:
		return rest, &Expectation{Pass: true}, nil
	case known && c.Reason == "":
		return rest, nil, nil
	case known:
		return rest, &Expectation{Reason: c.Reason}, nil
	case verb != "skip":
		return "", nil, fmt.Errorf("no such verb")
	}
	at := strings.LastIndex(rest, " # ")
	if at < 0 || strings.TrimSpace(rest[at+3:]) == "" {
		return "", nil, fmt.Errorf("a reason is missing: skip NAME # reason")
	}
	return rest[:at], &Expectation{Reason: rest[at+3:]}, nil
}

// Compare runs a subtest for each spec whose name contains focus; "" selects all. It fails t if
// there is none.
func Compare(t *testing.T, want map[string]Expectation, got []Spec, focus string) {
	ran := map[string]bool{}
	for _, s := range got {
		if s.Status == "skipped" && !strings.Contains(s.Name, focus) {
			continue
		}
		ran[s.Name] = true
		t.Run(s.Name, func(t *testing.T) {
			w, listed := want[s.Name]
			switch {
			case !listed:
				t.Errorf("the spec %s, and expected.txt does not list it\n%s%s", s.Status, s.Reason, s.Output)
			case w.Pass && s.Status != "passed":
				t.Errorf("the spec %s, and it must pass\n%s%s", s.Status, s.Reason, s.Output)
			case !w.Pass && s.Status == "passed":
				t.Logf("the spec passes; expected.txt may ask for it (it says: %s)", w.Reason)
			case !w.Pass:
				t.Skip(w.Reason)
			}
		})
	}
	if len(ran) == 0 {
		t.Errorf("no spec has %q in its name", focus)
	}
	for name := range want {
		if !ran[name] && strings.Contains(name, focus) {
			t.Errorf("expected.txt lists %q, and there is no such spec in the report", name)
		}
	}
}
