package server_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/keeper"
)

// The keeper logs at the level of the most recent kurid. So does its successor, although the holder
// starts that with the arguments of the first.
func TestLogLevelOfTheLastKurid(t *testing.T) {
	n := newNode(t)
	n.sandbox()
	logged := func() int {
		body, err := os.ReadFile(filepath.Join(n.state, "keeper.log"))
		n.must(err)
		return strings.Count(string(body), "level=DEBUG") + strings.Count(string(body), "level=INFO")
	}
	refused := func() {
		if _, err := n.Start(t.Context(), "unknown"); err == nil { // logged at debug level
			t.Fatal("an unknown container was started")
		}
	}
	kurid := func(level string) {
		c, err := keeper.Start(t.Context(), keeper.Options{Program: program, StateDir: n.state, LogLevel: level})
		n.must(err)
		c.Close()
	}
	for _, step := range []struct {
		level string
		more  bool
	}{{"debug", true}, {"error", false}, {"debug", true}} {
		kurid(step.level)
		before := logged()
		refused()
		if more := logged() > before; more != step.more {
			t.Errorf("at %q the keeper that runs logs more: %t", step.level, more)
		}
		n.killKeeper(false)
		refused()
		if more := logged() > before+1; more != step.more {
			t.Errorf("at %q the next keeper logs more: %t", step.level, more)
		}
	}
}
