package main

import (
	"context"
	"strings"
	"testing"
)

// No error of usage has the words of a library, or the type of a value in Go's words.
func TestUsageErrorsArePlain(t *testing.T) {
	for _, args := range []string{"logs --tail x web", "-t x pods", "stop -g x y", "ps -a=x", "pods -l x", "logs --nope", "exec", "run", "port-forward a b", "port-forward a 1:b", "-t"} {
		c, _, errs := newCLI(map[string]string{"CRI_CONFIG_FILE": emptyFile(t)})
		if code := c.main(context.Background(), strings.Fields(args)); code != exitUsage {
			t.Errorf("%s: exit code %d: %s", args, code, errs)
		}
		for _, raw := range []string{"strconv", "parsing", "arg(s)", "time: ", "invalid syntax", "stringToString", "int64"} {
			if strings.Contains(errs.String(), raw) {
				t.Errorf("%s: %q in %q", args, raw, errs)
			}
		}
	}
}
