package cli_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

func TestFind(t *testing.T) {
	v := clitest.Stock()
	for _, tt := range []struct {
		name                            string
		pod, container, running, either string // ids; "" not found; "?" ambiguous
	}{
		{name: "web", pod: "aaa1", container: "111a", running: "111a", either: "aaa1"},
		{name: "default/web", pod: "aaa1", container: "?", running: "?", either: "aaa1"}, // two containers in it
		{name: "web/web", container: "111a", running: "111a", either: "111a"},
		{name: "default/web/log", container: "111b", running: "111b", either: "111b"},
		{name: "aaa1/log", container: "111b", running: "111b", either: "111b"},
		{name: "log", container: "111b", running: "111b", either: "111b"},
		{name: "db", pod: "?", container: "?", running: "?", either: "?"},
		{name: "shop/db", pod: "bbb1", container: "333a", running: "?", either: "bbb1"},
		{name: "main", container: "?", running: "?", either: "?"}, // even if only one runs
		{name: "db/main", container: "?", running: "?", either: "?"},
		{name: "default/db/main", container: "222b", running: "222b", either: "222b"},
		{name: "222a", container: "222a", running: "?", either: "222a"}, // an id means that attempt
		{name: "222"}, // too short for an id
		{name: "id:222", container: "?", running: "?", either: "?"},
		{name: "id:222b", container: "222b", running: "222b", either: "222b"},
		{name: "again", pod: "ccc2", container: "444a", running: "?", either: "ccc2"},
		{name: "ccc1", pod: "ccc1", either: "ccc1"},
		{name: "aaa", pod: "ddd1", container: "bbb7", running: "bbb7", either: "ddd1"}, // names before ids
		{name: "aa"},
		{name: "id:aa", pod: "?", container: "?", running: "?", either: "?"},
		{name: "bbb"},
		{name: "id:bbb", pod: "bbb1", container: "bbb7", running: "bbb7", either: "?"},
		{name: "bbb1", pod: "bbb1", container: "333a", running: "?", either: "bbb1"},
		{name: "e9", pod: "ddd2", container: "?", running: "?", either: "ddd2"},
		{name: "e9e9e9e"},
		{name: "e9e9e9e9", container: "e9e9e9e9e9e9", running: "e9e9e9e9e9e9", either: "e9e9e9e9e9e9"},
		{name: "gone", container: "?", running: "?", either: "?"}, // the exited one counts, too
		{name: "gone2/gone", container: "5f6a7b8c9d0e", running: "?", either: "5f6a7b8c9d0e"},
		// a pod's name, and a container's in another pod
		{name: "gone2", pod: "ddd3", container: "?", running: "?", either: "ddd3"},
		{name: "id:ddd3", pod: "ddd3", container: "?", running: "0a0a0a0a0a0a", either: "ddd3"},
		{name: "again-main", container: "77777777bbbb", running: "77777777bbbb", either: "77777777bbbb"},
		{name: "anew", pod: "fff2", container: "77777777bbbb", running: "77777777bbbb", either: "fff2"},
		{name: "id:"},
		{name: "web/"},
		{name: "nothing"},
		{name: "web/nothing"},
		{name: "nothing/web"},
		{name: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			check := func(what, got string, err error, want string) {
				t.Helper()
				var missing cli.NotFoundError
				switch {
				case err == nil:
				case errors.As(err, &missing):
					got = ""
				default:
					got = "?"
				}
				if got != want {
					t.Errorf("%s: %q (%v), want %q", what, got, err, want)
				}
			}
			p, err := v.Pod(tt.name)
			check("pod", p.GetId(), err, tt.pod)
			c, err := v.Container(tt.name)
			check("container", c.GetId(), err, tt.container)
			c, _, err = v.RunningContainer(tt.name)
			check("running", c.GetId(), err, tt.running)
			p, c, err = v.PodOrContainer(tt.name)
			check("either", p.GetId()+c.GetId(), err, tt.either)
		})
	}
}

func TestAmbiguousNamesTheCandidates(t *testing.T) {
	_, err := clitest.Stock().Container("main")
	for _, part := range []string{`"main" means several containers`, "default/db/main (container 222b)",
		"shop/db/main (container 333a)"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
	v := &cli.Inventory{}
	for i := range 30 {
		v.Pods = append(v.Pods, clitest.Sandbox(strings.Repeat("e", i+1), "n", "p"+string(rune('a'+i)), clitest.Ready, 0))
	}
	if _, err = v.Pod("ee"); err != nil { // also the complete id of one
		t.Error(err)
	}
	v.Pods[0].Id = "ef"
	if _, err = v.Pod("id:e"); err == nil || !strings.Contains(err.Error(), "and 20 more") {
		t.Errorf("a long list: %v", err)
	}
}

func TestShortIDsAreHinted(t *testing.T) {
	var missing cli.NotFoundError
	if _, err := clitest.Stock().Container("e9e"); !errors.As(err, &missing) || !strings.Contains(err.Error(), "id:e9e") {
		t.Errorf("a short id: %v", err)
	}
	if _, _, err := clitest.Stock().PodOrContainer("none"); !errors.As(err, &missing) ||
		strings.Contains(err.Error(), "id:") {
		t.Errorf("no id at all: %v", err)
	}
}
