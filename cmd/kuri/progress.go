package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
)

const (
	repaintEvery = 100 * time.Millisecond
	maxBars      = 16 // layers that are shown at once
)

// progress shows how far a pull is: bars on a terminal, a line for each finished layer elsewhere. Runtimes other than Kuri
// tell nothing on the way, so there it is the time that passes.
type progress struct {
	w        io.Writer
	terminal bool
	width    int
	ref      string
	began    time.Time

	painted int // lines on the screen that the next paint replaces
	told    map[string]bool
	last    *kuriv1.PullProgress
}

func newProgress(w io.Writer, ref string) *progress {
	p := &progress{w: w, ref: ref, began: time.Now(), width: 80, told: map[string]bool{}}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal = os.Getenv("TERM") != "dumb"
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 20 {
			p.width = width
		}
	}
	return p
}

// watch shows the progress of a pull until ctx ends, which is when the pull has ended.
func (p *progress) watch(ctx context.Context, img *client.Images) {
	if !p.terminal {
		fmt.Fprintln(p.w, "pulling", printable(p.ref))
	}
	updates := make(chan *kuriv1.PullProgress)
	go func() {
		defer close(updates)
		stream, err := img.Kuri.WatchPull(ctx, &kuriv1.WatchPullRequest{Image: p.ref})
		for err == nil {
			var u *kuriv1.PullProgress
			if u, err = stream.Recv(); err == nil {
				select {
				case updates <- u:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	defer func() {
		for range updates { // the reader ends with ctx
		}
		p.erase()
	}()
	tick := time.NewTicker(repaintEvery)
	defer tick.Stop()
	in := (<-chan *kuriv1.PullProgress)(updates)
	for {
		select {
		case <-ctx.Done():
			return
		case u, ok := <-in:
			if !ok {
				in = nil // not Kuri: nothing but the time is shown from now on
				continue
			}
			p.last = u
			p.tell(u)
		case <-tick.C:
			p.paint()
		}
	}
}

// tell prints a line for each layer that has become complete.
func (p *progress) tell(u *kuriv1.PullProgress) {
	if p.terminal {
		return
	}
	for _, l := range u.Layers {
		if l.Done && !p.told[l.Digest] {
			p.told[l.Digest] = true
			fmt.Fprintf(p.w, "  layer %s: %s, done\n", trim(l.Digest, false), size(uint64(max(l.Size, 0))))
		}
	}
}

func (p *progress) paint() {
	if !p.terminal {
		return
	}
	lines := []string{fmt.Sprintf("pulling %s  %s", printable(p.ref), short(time.Since(p.began)))}
	layers := p.last.GetLayers()
	for _, l := range layers[:min(len(layers), maxBars)] {
		lines = append(lines, bar(l, p.width))
	}
	if rest := len(layers) - maxBars; rest > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more layers", rest))
	}
	p.erase()
	for _, line := range lines {
		if r := []rune(line); len(r) > p.width {
			line = string(r[:p.width])
		}
		fmt.Fprintln(p.w, line)
	}
	p.painted = len(lines)
}

// erase takes the last paint off the screen.
func (p *progress) erase() {
	if p.painted > 0 {
		fmt.Fprintf(p.w, "\x1b[%dA\x1b[J", p.painted)
		p.painted = 0
	}
}

// bar draws one layer in a line of at most width characters.
func bar(l *kuriv1.LayerProgress, width int) string {
	state := size(uint64(max(l.Fetched, 0)))
	if l.Size > 0 {
		state += " / " + size(uint64(l.Size))
	}
	switch {
	case l.Done:
		state += ", done"
	case l.Size > 0 && l.Fetched >= l.Size:
		state += ", unpacking"
	}
	cells := min(max(width-shortID-len(state)-8, 0), 40)
	full := 0
	if l.Done {
		full = cells
	} else if l.Size > 0 {
		full = int(min(max(float64(l.Fetched)/float64(l.Size), 0), 1) * float64(cells))
	}
	return fmt.Sprintf("  %s  %s%s  %s", trim(l.Digest, false), strings.Repeat("█", full), strings.Repeat("░", cells-full), state)
}
