package server_test

import (
	"testing"

	"github.com/kuri-cri/kuri/internal/keeper"
)

func TestContainerRunsAndIsGone(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, "echo hello; echo oops >&2; hostname; exit 7")
	c := n.wait(j)
	if c.Exit.Code != 7 || c.Exit.OomKilled || c.StartedAt == 0 || c.Exit.FinishedAt < c.StartedAt {
		t.Errorf("exit %+v of %+v", c.Exit, c)
	}
	if out := n.output(j); out != "hello\noops\nweb\n" && out != "oops\nhello\nweb\n" && out != "hello\nweb\noops\n" {
		t.Errorf("output %q", out)
	}
	record, err := keeper.ReadExit(j.Bundle)
	if err != nil || record.Code != 7 || record.FinishedAt != c.Exit.FinishedAt || record.StartedAt != c.StartedAt {
		t.Errorf("record %+v, %v", record, err)
	}
}
