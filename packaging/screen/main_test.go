package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestDraw(t *testing.T) {
	var b strings.Builder
	if err := draw(strings.NewReader("# <a & b>\n$ kuri ps\n\x1b[1mNAME\x1b[0m\tAGE\n"+strings.Repeat("ä", 200)+"\n"),
		&b); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	for _, want := range []string{
		`class="comment"`, `# &lt;a &amp; b&gt;</text>`, `class="typed"`, `>$ kuri ps</text>`, `>NAME AGE</text>`,
		">" + strings.Repeat("ä", columns-1) + "…</text>",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	for d := xml.NewDecoder(strings.NewReader(got)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, got)
		}
	}
}
