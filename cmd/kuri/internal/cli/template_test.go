package cli

import (
	"strings"
	"testing"
)

// Templates print numbers as JSON has them, and their errors have no terms of Go.
func TestTemplateNumbersAndErrors(t *testing.T) {
	data := map[string]any{"list": []any{map[string]any{"id": "a"}}, "pid": 4194304, "first": 1073741824, "share": 0.5}
	for _, tt := range []struct{ format, out, err string }{
		{"go-template={{.pid}} {{.first}} {{.share}}", "4194304 1073741824 0.5\n", ""},
		{"jsonpath={.pid} {.first}", "4194304 1073741824\n", ""},
		{"jsonpath={.list[?(@.id==\"a\")].id}", "a\n", ""},
		{"go-template={{.list.x}}", "", ".list.x: can't evaluate field x"},
		{"go-template={{index .none 1}}", "", "index .none 1: error calling index: index of nothing"},
		{"go-template={{index .list \"a\"}}", "", "cannot index a list with a text"},
		{"go-template={{len .none}}", "", "len .none: error calling len: there is no value"},
		{"go-template={{template \"x\"}}", "", `{{template "x"}}: template "x" not defined`},
		{"go-template={{.list", "", "unclosed action"},
		{"go-template={{nope}}", "", `function "nope" not defined`},
		{"jsonpath={[0]}", "", "an object is not a list"},
		{"jsonpath={.list[9]}", "", "array index out of bounds: index 9, length 1"},
		{"jsonpath={.list", "", "unclosed action"},
	} {
		t.Run(tt.format, func(t *testing.T) {
			c, out, _ := newCLI(nil)
			c.Format = tt.format
			err := c.PrintData(data)
			if tt.err == "" {
				if err != nil || out.String() != tt.out {
					t.Errorf("prints %q (%v), want %q", out, err, tt.out)
				}
				return
			}
			if want := "-o " + tt.format + ": "; err == nil || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), tt.err) {
				t.Fatalf("error %v, want %s…%s", err, want, tt.err)
			}
			for _, word := range []string{"interface", "template:", "executing", "reflect"} {
				if text := strings.TrimPrefix(err.Error(), "-o "+tt.format); strings.Contains(text, word) {
					t.Errorf("%q is in the error %q", word, text)
				}
			}
		})
	}
}
