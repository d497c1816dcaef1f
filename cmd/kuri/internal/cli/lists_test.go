package cli

import (
	"bytes"
	"testing"
)

func TestWriteRow(t *testing.T) {
	var out bytes.Buffer
	widths := widen(nil, [][]string{{"A", "B"}, {"longer", ""}})
	writeRow(&out, []string{"x", ""}, widths)
	writeRow(&out, []string{"süß", "\x1b[1m"}, widths)
	if want := "x        -\nsüß      ?[1m\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
