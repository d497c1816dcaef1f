package main

import (
	"context"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

// No usage error contains a phrase of a library or the name of a Go type.
func TestUsageErrorsArePlain(t *testing.T) {
	for _, args := range []string{"logs --tail x web", "-t x pods", "stop -g x y", "ps -a=x", "pods -l x", "logs --nope",
		"exec", "run", "port-forward a b", "port-forward a 1:b", "-t"} {
		c, _, errs := clitest.New(map[string]string{"CRI_CONFIG_FILE": emptyFile(t)})
		if code := c.Main(context.Background(), root(c), strings.Fields(args)); code != cli.ExitUsage {
			t.Errorf("%s: exit code %d: %s", args, code, errs)
		}
		for _, raw := range []string{"strconv", "parsing", "arg(s)", "time: ", "invalid syntax", "stringToString", "int64"} {
			if strings.Contains(errs.String(), raw) {
				t.Errorf("%s: %q in %q", args, raw, errs)
			}
		}
	}
}

// Every verb has examples, whose verbs and flags exist.
func TestExamples(t *testing.T) {
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
		if cmd.HasSubCommands() || cmd.Hidden {
			return
		}
		if cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Example) {
			_, line, ok := strings.Cut(line, "kuri ")
			line, _, _ = strings.Cut(line, "   ")
			for _, end := range []string{"|", "<"} {
				line, _, _ = strings.Cut(line, end)
			}
			c, _, _ := clitest.New(nil)
			root := root(c)
			of, rest, err := root.Find(strings.Fields(line))
			if err != nil || !ok || of == root {
				t.Errorf("%s: the example %q is of no verb: %v", cmd.CommandPath(), line, err)
				continue
			}
			if err := of.ParseFlags(rest); err != nil {
				t.Errorf("%s: the example %q: %v", cmd.CommandPath(), line, err)
			}
		}
	}
	c, _, _ := clitest.New(nil)
	walk(root(c))
}

// Each verb is in a group of the program's help, except help and completion.
func TestEveryVerbHasAGroup(t *testing.T) {
	c, out, _ := clitest.New(nil)
	if code := c.Main(t.Context(), root(c), []string{"--help"}); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	for _, verb := range root(c).Commands() {
		if verb.GroupID == "" {
			t.Errorf("%s has no group", verb.CommandPath())
		}
	}
	for _, title := range []string{"Running:", "Pods and containers:", "Observing:", "Images:", "Node and daemon:"} {
		if !strings.Contains(out.String(), "\n"+title+"\n") {
			t.Errorf("there is no %q in:\n%s", title, out)
		}
	}
}
