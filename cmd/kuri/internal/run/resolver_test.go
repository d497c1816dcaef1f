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
}
