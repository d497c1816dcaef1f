package main

import (
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	tests := []struct {
		name, in string
		want     counts
		says     []string
	}{
		{"a pass", `{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Elapsed":0.5}
`, counts{passed: 1}, []string{"ok    p 0.5s"}},
		{"a skip says why", `{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:3: not root\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
`, counts{skipped: 1}, []string{"SKIP  p TestA: a_test.go:3: not root"}},
		{"a failed test is counted once, its package not again", `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:9: no\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p","Elapsed":1}
`, counts{failed: 1}, []string{"a_test.go:9: no", "FAIL  p 1.0s"}},
		{"a package that does not build is a failure", `{"ImportPath":"p","Action":"build-output","Output":"p.go:1: syntax error\n"}
{"Action":"fail","Package":"p","FailedBuild":"p"}
`, counts{failed: 1}, []string{"syntax error"}},
		{"what is not JSON is passed on", "go: warning\n", counts{}, []string{"go: warning"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out strings.Builder
			got, err := read(strings.NewReader(test.in), &out)
			if err != nil || got != test.want {
				t.Errorf("got %v, %v, want %v", got, err, test.want)
			}
			for _, s := range test.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("output lacks %q:\n%s", s, out.String())
				}
			}
		})
	}
}
