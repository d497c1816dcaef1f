package run

import (
	"strings"
	"testing"
)

func TestParseResolver(t *testing.T) {
	got := parseResolver([]byte("# x\nsearch old\nnameserver 1.1.1.1 # y\nnameserver fd00::1\noptions ndots:2 rotate\nsearch a.example b.example\nnameserver\nsortlist z\n"))
	if want := `servers:"1.1.1.1" servers:"fd00::1" searches:"a.example" searches:"b.example" options:"ndots:2" options:"rotate"`; strings.Join(strings.Fields(got.String()), " ") != want {
		t.Errorf("got %s", got)
	}
	long := parseResolver([]byte("#" + strings.Repeat("x", 100<<10) + "\nnameserver 1.1.1.1"))
	if len(long.Servers) != 1 {
		t.Errorf("after a long line: %s", long)
	}
}
