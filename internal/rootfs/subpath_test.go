package rootfs

import (
	"errors"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestSubPath(t *testing.T) {
	layers := []string{
		layerOf(t, map[string]string{"a/top": "x", "gone": "!", "link": "->a/deep", "out": "->../../../../../etc",
			"abs": "->/a", "a/up": "->..", "circle": "->circle"}),
		layerOf(t, map[string]string{"a/deep/file": "x", "gone/file": "x", "b": "d"}),
	}
	for _, c := range []struct {
		path, want string
		kind       fault.Kind
	}{
		{path: "", want: ""},
		{path: ".", want: ""},
		{path: "a", want: "a"},
		{path: "a/", want: "a"},
		{path: "a/top", want: "a/top"},
		{path: "a/deep/file", want: "a/deep/file"},
		{path: "link", want: "a/deep"},
		{path: "link/file", want: "a/deep/file"},
		{path: "abs/deep", want: "a/deep"},
		{path: "a/up/b", want: "b"},
		{path: "a/up/a/up/a", want: "a"},
		{path: "b/../a/top", want: "a/top"},
		{path: "out", kind: fault.NotFound}, // must not reach the host's /etc
		{path: "gone", kind: fault.NotFound},
		{path: "gone/file", kind: fault.NotFound},
		{path: "a/top/x", kind: fault.NotFound},
		{path: "nowhere", kind: fault.NotFound},
		{path: "circle", kind: fault.Invalid},
	} {
		got, err := SubPath(layers, c.path)
		if got != c.want || (err != nil) != (c.kind != "") || c.kind != "" && !errors.Is(err, c.kind) {
			t.Errorf("%q: %q, %v", c.path, got, err)
		}
	}
}
