package stream

import (
	"errors"
	"io"
	"strings"
	"testing"
)

func TestParsePlace(t *testing.T) {
	for in, want := range map[string]place{
		"web:/etc/hosts":  {"web", "/etc/hosts"},
		"ns/pod/c:rel":    {"ns/pod/c", "rel"},
		"web:/a:b":        {"web", "/a:b"},
		"web:":            {"web", ""},
		"./web:x":         {"", "./web:x"},
		"/a:b":            {"", "/a:b"},
		"../a:b":          {"", "../a:b"},
		"file":            {"", "file"},
		"-":               {"", "-"},
		":x":              {"", ":x"},
		"id:3f:/x":        {"id:3f", "/x"},
		"id:/etc/a:b":     {"id", "/etc/a:b"},
		"id:x":            {"id", "x"},
		"0123abcd:/x/y/.": {"0123abcd", "/x/y/."},
	} {
		if got := parsePlace(in); got != want {
			t.Errorf("%q: %+v, want %+v", in, got, want)
		}
	}
}

func TestSplit(t *testing.T) {
	for in, want := range map[string][2]string{
		"/etc/hosts": {"/etc", "hosts"}, "/etc/": {"/", "etc"}, "/": {"/", "."}, "/etc/.": {"/etc", "."}, ".": {".", "."},
		"rel":    {".", "rel"},
		"a/../b": {".", "b"}, "..": {"..", "."}, "../..": {"../..", "."}, "/-x": {"/", "-x"},
	} {
		if dir, base := split(in); dir != want[0] || base != want[1] {
			t.Errorf("%q: %q %q, want %q", in, dir, base, want)
		}
	}
}

func TestWordsAreBounded(t *testing.T) {
	w := &words{}
	for range 100 {
		if n, err := w.Write([]byte(strings.Repeat("x", 1000))); n != 1000 || err != nil {
			t.Fatal(n, err)
		}
	}
	if w.kept.Len() != maxMessages {
		t.Error(w.kept.Len())
	}
}

// TestPadding: padding reads to the end, fails if that is too far away, and returns a read error.
func TestPadding(t *testing.T) {
	if err := padding(strings.NewReader(strings.Repeat("x", 10<<10))); err != nil {
		t.Error(err)
	}
	if err := padding(endless{}); err == nil || !strings.Contains(err.Error(), "does not end") {
		t.Error(err)
	}
	r, w := io.Pipe()
	broken := errors.New("broken")
	w.CloseWithError(broken)
	if err := padding(r); !errors.Is(err, broken) {
		t.Error(err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }
