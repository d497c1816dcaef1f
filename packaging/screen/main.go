// Command screen draws a terminal session as an SVG in which the lines appear one after the other.
// It reads the session from standard input: a line that begins with "$ " was typed, one with "# "
// is a comment, all others were printed. Where nothing can be animated the whole session is seen.
package main

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"os"
	"strings"
)

// The screen, in characters and in pixels.
const (
	columns    = 108
	charWidth  = 7.25
	lineHeight = 17.0
	margin     = 14.0
)

// What passes before a line appears, in seconds: for a person to read, not what the programs took.
const (
	typed   = 1.2
	printed = 0.06
)

func main() {
	if err := draw(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "screen:", err)
		os.Exit(1)
	}
}

func draw(in io.Reader, out io.Writer) error {
	var lines []string
	scanner := bufio.NewScanner(in)
	for scanner.Scan() {
		lines = append(lines, fit(scanner.Text()))
	}
	if err := scanner.Err(); err != nil {
		return err
	}
	width, height := columns*charWidth+2*margin, float64(len(lines))*lineHeight+2*margin
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f" font-family="ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace" font-size="12">
<style>
text { fill: #d7d3cb; white-space: pre; animation: appear 0.01s backwards }
.typed { fill: #ffd9a0 } .comment { fill: #8fa3b5 }
@keyframes appear { from, to { opacity: 0 } }
@media (prefers-reduced-motion: reduce) { text { animation: none } }
</style>
<rect width="100%%" height="100%%" rx="6" fill="#22201d"/>
`, width, height, width, height)
	at := 0.0
	for i, line := range lines {
		class := ""
		switch {
		case strings.HasPrefix(line, "$ "):
			class, at = "typed", at+typed
		case strings.HasPrefix(line, "# "):
			class, at = "comment", at+typed
		default:
			at += printed
		}
		fmt.Fprintf(w, `<text class="%s" x="%.0f" y="%.1f" style="animation-delay:%.2fs" xml:space="preserve">%s</text>`+"\n",
			class, margin, margin+float64(i+1)*lineHeight-4, at, html.EscapeString(line))
	}
	fmt.Fprintln(w, "</svg>")
	return w.Flush()
}

// fit cuts a line where the screen ends and leaves out what is no character to draw, tabs and terminal controls.
func fit(line string) string {
	var b strings.Builder
	escape := false
	n := 0
	for _, r := range line {
		switch {
		case r == 0x1b:
			escape = true
			continue
		case escape:
			escape = !(r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z')
			continue
		case r == '\t':
			r = ' '
		case r < ' ' || r == 0x7f:
			continue
		}
		if n++; n == columns {
			b.WriteRune('…')
			break
		} else if n > columns {
			break
		}
		b.WriteRune(r)
	}
	return b.String()
}
