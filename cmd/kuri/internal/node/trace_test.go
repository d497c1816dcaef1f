package node

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTraceText(t *testing.T) {
	const ms = 1_000_000
	tr := &trace{Name: "shop/web", Began: 1e18, Took: 100 * ms, Operations: []traceOperation{
		{Kind: "RunPodSandbox", Began: 1e18, Took: 20 * ms,
			Steps: []traceStep{{"network", 5 * ms, 15 * ms, []traceStep{{"part", 10 * ms, 5 * ms, nil}}}}},
		{Kind: "PullImage", Image: "registry.example/a/very/long/name:1", Began: 1e18 + 30*ms, Took: 50 * ms},
		{Kind: "CreateContainer", Container: "c\x1b[2J", Began: 1e18 + 80*ms, Took: 15 * ms,
			Init: "libcontainer: a user namespace"},
		{Kind: "CreateContainer", Container: "d", Began: 1e18 + 95*ms, Took: 1, Init: "native", Error: "no\nroom"},
		// An operation that is impossible, and must not panic.
		{Kind: "StartContainer", Container: "d", Began: 1e18 + 99*ms, Took: 500 * ms,
			Steps: []traceStep{{"odd", -5 * ms, 900 * ms, nil}}},
	}}
	for _, width := range []int{0, 40, 80, 120, 300} {
		text := tr.text(width)
		for _, want := range []string{
			"shop/web: 100 ms, at ", "RunPodSandbox ", "  network ", "(client) ", "10.0 ms", "PullImage registry.example/a/…",
			"CreateContainer c?[2J ", "FAILED: no?room\n",
			"first process by libcontainer, the longer way: a user namespace\n", "first process by Kuri's own init\n", "0 µs",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("at %d columns there is no %q in\n%s", width, want, text)
			}
		}
		for line := range strings.Lines(text) {
			if n := utf8.RuneCountInString(strings.TrimSpace(line)); strings.ContainsAny(line, "█▒░·") &&
				n > max(width, traceName+traceTime+3+leastBar) {
				t.Errorf("a line of %d characters in %d columns: %s", n, width, line)
			}
		}
	}
	// The bars are in order: a later start is further to the right.
	text := tr.text(traceName + traceTime + 3 + 100)
	for name, want := range map[string][2]int{"RunPodSandbox": {0, 20}, "  network": {5, 15}, "    part": {10, 5},
		"PullImage": {30, 50}, "StartContainer": {99, 1}} {
		for line := range strings.Lines(text) {
			if strings.HasPrefix(line, name) {
				bar := []rune(strings.TrimRight(line, "\n"))[traceName+1+traceTime+2:]
				n := len(strings.TrimLeft(string(bar), " ")) / len("█")
				if got := [2]int{len(bar) - n, n}; got != want {
					t.Errorf("%s is at %v, want %v", name, got, want)
				}
			}
		}
	}
}
