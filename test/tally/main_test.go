package main

import (
	"os"
	"path/filepath"
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
			got, _, err := read(strings.NewReader(test.in), &out)
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

// A test that failed alone may be retried. A whole package, or a test that ended its program early, may not.
func TestAgain(t *testing.T) {
	const a, end, pkg = `{"Action":"fail","Package":"p","Test":"TestA/one"}
{"Action":"fail","Package":"p","Test":"TestA"}
`, `{"Action":"output","Package":"p","Output":"FAIL\n"}
`, `{"Action":"fail","Package":"p","Elapsed":1}
`
	more := strings.NewReplacer("TestA", "TestB").Replace(a) + strings.NewReplacer("TestA", "TestC").Replace(a)
	for name, test := range map[string]struct{ in, want string }{
		"one":                  {a + end + pkg, "p TestA 2\n"},
		"it ended the program": {a + pkg, ""},
		"more than two":        {a + more + end + pkg, ""},
		"no test":              {end + pkg, ""},
		"beside no test":       {a + end + pkg + strings.ReplaceAll(pkg, `"p"`, `"q"`), ""},
	} {
		var out strings.Builder
		_, again, err := read(strings.NewReader(test.in), &out)
		if got := strings.Join(again, ""); err != nil || got != test.want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestFlakyIsCounted(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	for path, c := range map[string]counts{one: {passed: 5, flaky: 1}, two: {passed: 2, skipped: 3}} {
		if err := os.WriteFile(path, []byte(c.String()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sum, err := add([]string{one, two})
	if err != nil || sum.String() != "7 passed, 0 failed, 3 skipped, 1 flaky" {
		t.Errorf("%v, %v", sum, err)
	}
}
