package image

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

const (
	repaintEvery = 100 * time.Millisecond
	maxBars      = 16 // the maximum number of layers on the screen
)

// progress shows the progress of a pull on standard error: bars with rates on a terminal, otherwise
// a line for each finished layer, or the runtime's reports as lines of JSON if JSON is requested.
// Runtimes other than Kuri report nothing meanwhile, so for them it shows the elapsed time.
type progress struct {
	w     io.Writer
	how   progressKind
	size  func() (width, height int) // current size of the terminal
	color bool
	ref   string
	began time.Time

	painted []int // lengths of the lines on the screen that the next paint replaces
	told    map[string]bool
	last    *kuriv1.PullProgress
	rates   map[string]*rate // of the layers in progress, by digest
	all     rate             // of all layers together
}

type progressKind int

const (
	progressLines progressKind = iota
	progressBars
	progressJSON
)

func newProgress(c *cli.CLI, ref string) *progress {
	p := &progress{w: c.Err, ref: ref, began: time.Now(), told: map[string]bool{}, rates: map[string]*rate{}}
	f, ok := c.Err.(*os.File)
	switch {
	case c.Format == cli.FormatJSON:
		p.how = progressJSON
	case ok && term.IsTerminal(int(f.Fd())) && c.Env("TERM") != "dumb":
		p.how, p.color = progressBars, c.Env("NO_COLOR") == ""
		p.size = func() (int, int) {
			width, height, err := term.GetSize(int(f.Fd()))
			if err != nil || width <= 0 || height <= 0 {
				return 80, 24
			}
			return width, height
		}
	}
	return p
}

// rate is the speed of a download over the last seconds.
type rate struct {
	fetched int64
	at      time.Time
	per     float64 // bytes per second
}

// rateOver is the approximate period of a rate's average.
const rateOver = 3 * time.Second

// update records the bytes fetched so far.
func (r *rate) update(fetched int64, now time.Time) {
	since := now.Sub(r.at)
	switch {
	case r.at.IsZero() || fetched < r.fetched: // the first call, or the layer is fetched again
		*r = rate{fetched: fetched, at: now}
	case since >= repaintEvery:
		weight := 1 - math.Exp(-float64(since)/float64(rateOver))
		if r.per == 0 {
			weight = 1
		}
		r.per += weight * (float64(fetched-r.fetched)/since.Seconds() - r.per)
		r.fetched, r.at = fetched, now
	}
}

// text returns the rate and the remaining time, or "" if they are not known yet.
func (r *rate) text(left int64) string {
	if r == nil || r.per < 1 {
		return ""
	}
	s := "  " + cli.Size(uint64(r.per)) + "/s"
	if seconds := float64(left) / r.per; left > 0 && seconds < 100*24*3600 {
		s += "  " + cli.ShortDuration(time.Duration(math.Ceil(seconds))*time.Second) + " left"
	}
	return s
}

// watch shows the progress until ctx ends, with the end of the pull.
func (p *progress) watch(ctx context.Context, img *client.Images) {
	if p.how == progressLines {
		fmt.Fprintln(p.w, "pulling", cli.Printable(p.ref))
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
				in = nil // not Kuri: only the elapsed time is shown from now on
				continue
			}
			p.last = u
			p.tell(u)
		case <-tick.C:
			p.paint()
		}
	}
}

// tell records the runtime's report, and prints it unless paint does.
func (p *progress) tell(u *kuriv1.PullProgress) {
	now := time.Now()
	total := int64(0)
	for _, l := range u.Layers {
		if l.Phase == kuriv1.LayerPhase_LAYER_PHASE_PRESENT {
			continue
		}
		total += max(l.Fetched, 0)
		if p.rates[l.Digest] == nil {
			p.rates[l.Digest] = &rate{}
		}
		p.rates[l.Digest].update(l.Fetched, now)
	}
	p.all.update(total, now)
	switch p.how {
	case progressJSON:
		if line, err := cli.Marshal(u); err == nil {
			fmt.Fprintf(p.w, "%s\n", bytes.ReplaceAll(line, []byte("\n"), nil))
		}
	case progressLines:
		for _, l := range u.Layers {
			if l.Done && !p.told[l.Digest] {
				p.told[l.Digest] = true
				if l.Digest == "" {
					fmt.Fprintf(p.w, "  the artifact's files: %s\n", finished(l))
					continue
				}
				fmt.Fprintf(p.w, "  layer %s: %s, %s\n", cli.TrimID(l.Digest, false), cli.Size(uint64(max(l.Size, 0))), finished(l))
			}
		}
	}
}

func (p *progress) paint() {
	if p.how != progressBars {
		return
	}
	width, height := p.size()
	layers := p.last.GetLayers()
	lines := []string{p.head(layers)}
	most := min(len(layers), maxBars, max(height-3, 0))
	for _, l := range layers[:most] {
		lines = append(lines, bar(l, p.rates[l.Digest], width-1))
	}
	if rest := len(layers) - most; rest > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more", rest))
	}
	p.erase()
	for _, line := range lines {
		if r := []rune(line); len(r) >= width { // a full line would wrap
			line = string(r[:width-1])
		}
		p.painted = append(p.painted, len([]rune(line)))
		fmt.Fprintln(p.w, p.colored(line))
	}
}

// head returns the line above the bars, for all layers together.
func (p *progress) head(layers []*kuriv1.LayerProgress) string {
	line := fmt.Sprintf("pulling %s  %s", cli.Printable(p.ref), cli.ShortDuration(time.Since(p.began)))
	switch p.last.GetPhase() {
	case kuriv1.PullPhase_PULL_PHASE_RESOLVING:
		return line + "  asking the registry"
	case kuriv1.PullPhase_PULL_PHASE_STORING:
		return line + "  writing to the disk"
	}
	left, known := int64(0), len(layers) > 0
	for _, l := range layers {
		known = known && l.Size > 0
		if l.Phase != kuriv1.LayerPhase_LAYER_PHASE_PRESENT {
			left += max(l.Size-l.Fetched, 0)
		}
	}
	if known && left == 0 {
		return line
	}
	return line + p.all.text(left)
}

// colored makes bars green if colors are enabled.
func (p *progress) colored(line string) string {
	first, last := strings.Index(line, full), strings.LastIndex(line, full)
	if !p.color || first < 0 {
		return line
	}
	last += len(full)
	return line[:first] + "\x1b[32m" + line[first:last] + "\x1b[0m" + line[last:]
}

// erase removes the last paint from the screen. If the terminal has become narrower, one line
// occupies several.
func (p *progress) erase() {
	if len(p.painted) == 0 {
		return
	}
	width, _ := p.size()
	rows := 0
	for _, n := range p.painted {
		rows += max(1, (n+width-1)/width)
	}
	fmt.Fprintf(p.w, "\x1b[%dA\r\x1b[J", rows)
	p.painted = nil
}

const full, empty = "█", "░"

// bar returns a line of at most width characters for one layer.
func bar(l *kuriv1.LayerProgress, r *rate, width int) string {
	state := cli.Size(uint64(max(l.Fetched, 0)))
	if l.Size > 0 {
		state += " / " + cli.Size(uint64(l.Size))
	}
	switch {
	case l.Done:
		state += ", " + finished(l)
	case l.Size > 0 && l.Fetched >= l.Size:
		state += ", unpacking"
	case l.Phase == kuriv1.LayerPhase_LAYER_PHASE_WAITING:
		state += ", waiting"
	default:
		state += r.text(l.Size - l.Fetched)
	}
	cells := min(max(width-cli.ShortIDLength-len(state)-6, 0), 40)
	n := 0
	if l.Done {
		n = cells
	} else if l.Size > 0 {
		n = int(min(max(float64(l.Fetched)/float64(l.Size), 0), 1) * float64(cells))
	}
	return fmt.Sprintf("  %-*s  %s%s  %s", cli.ShortIDLength, cli.TrimID(l.Digest, false), strings.Repeat(full, n),
		strings.Repeat(empty, cells-n), state)
}

func finished(l *kuriv1.LayerProgress) string {
	if l.Phase == kuriv1.LayerPhase_LAYER_PHASE_PRESENT {
		return "here already"
	}
	return "done"
}
