package image

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

func TestBar(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for _, tt := range []struct {
		layer *kuriv1.LayerProgress
		rate  *rate
		want  string
	}{
		{&kuriv1.LayerProgress{Digest: digest, Size: 4096, Fetched: 1024}, nil,
			"  aaaaaaaaaaaa  ████░░░░░░░░░░░░░░  1.0 KiB / 4.0 KiB"},
		{&kuriv1.LayerProgress{Digest: digest, Size: 4096, Fetched: 2048}, &rate{per: 1024},
			"  aaaaaaaaaaaa    2.0 KiB / 4.0 KiB  1.0 KiB/s  2s left"},
		{&kuriv1.LayerProgress{Digest: digest, Size: 4096, Fetched: 4096}, &rate{per: 1},
			"  aaaaaaaaaaaa  ███████  4.0 KiB / 4.0 KiB, unpacking"},
		{&kuriv1.LayerProgress{Digest: digest, Size: 4096, Fetched: 4096, Done: true}, nil,
			"  aaaaaaaaaaaa  ████████████  4.0 KiB / 4.0 KiB, done"},
		{&kuriv1.LayerProgress{Digest: digest, Size: 4096, Fetched: 4096, Done: true,
			Phase: kuriv1.LayerPhase_LAYER_PHASE_PRESENT}, nil, "  aaaaaaaaaaaa  ████  4.0 KiB / 4.0 KiB, here already"},
		{&kuriv1.LayerProgress{Digest: digest, Size: 4096, Phase: kuriv1.LayerPhase_LAYER_PHASE_WAITING}, nil,
			"  aaaaaaaaaaaa  ░░░░░░░░░░░░░  0 B / 4.0 KiB, waiting"},
		{&kuriv1.LayerProgress{Digest: digest, Size: -1, Fetched: -1}, nil,
			"  aaaaaaaaaaaa  ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░  0 B"},
		{&kuriv1.LayerProgress{Digest: digest, Size: 10, Fetched: 1 << 40}, nil,
			"  aaaaaaaaaaaa  ██████████  1.0 TiB / 10 B, unpacking"},
	} {
		if got := bar(tt.layer, tt.rate, 53); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestRate(t *testing.T) {
	now := time.Unix(1e9, 0)
	var r rate
	if r.update(100, now); r.text(10) != "" {
		t.Errorf("after the first sight: %q", r.text(10))
	}
	for range 100 {
		now = now.Add(200 * time.Millisecond)
		r.update(r.fetched+200<<10, now)
	}
	if got := r.text(10 << 20); got != "  1000.0 KiB/s  11s left" {
		t.Errorf("steady: %q", got)
	}
	r.update(r.fetched+1<<30, now.Add(time.Millisecond)) // too soon to be counted
	if got := r.text(0); got != "  1000.0 KiB/s" {
		t.Errorf("with nothing left: %q", got)
	}
	for range 300 {
		now = now.Add(200 * time.Millisecond)
		r.update(r.fetched, now)
	}
	if got := r.text(10 << 20); got != "" {
		t.Errorf("stalled: %q", got)
	}
	if r.update(5, now.Add(time.Second)); r.per != 0 {
		t.Errorf("fetched again: %v", r.per)
	}
}

// TestPaintRespectsTheTerminal paints at changing sizes.
func TestPaintRespectsTheTerminal(t *testing.T) {
	var out bytes.Buffer
	width, height := 100, 10
	p := &progress{w: &out, how: progressBars, ref: strings.Repeat("r", 50), began: time.Now(), rates: map[string]*rate{},
		size: func() (int, int) { return width, height }, last: &kuriv1.PullProgress{}}
	for i := range 30 {
		p.last.Layers = append(p.last.Layers, &kuriv1.LayerProgress{Digest: strings.Repeat("f", 20), Size: 100 << 20,
			Fetched: int64(i) << 20})
	}
	for _, size := range [][2]int{{100, 10}, {40, 10}, {20, 5}, {1, 1}, {200, 100}} {
		width, height = size[0], size[1]
		p.paint()
		out.Reset()
		p.paint()
		text := out.String()
		lines := strings.Split(strings.TrimSuffix(text[strings.Index(text, "\x1b[J")+3:], "\n"), "\n")
		if len(lines) > max(height-1, 2) {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		for _, l := range lines {
			if len([]rune(l)) >= max(width, 1) {
				t.Errorf("%v: a line of %d characters: %q", size, len([]rune(l)), l)
			}
		}
		if strings.Contains(text, "\x1b[3") {
			t.Errorf("%v: colors that were not asked for", size)
		}
	}
	width, height = 100, 10
	p.paint()
	out.Reset()
	width = 30 // the head and seven bars have three rows each now, the last line one
	p.erase()
	if want := "\x1b[25A"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("in a narrower terminal it goes up by %q, want %q", out.String(), want)
	}
}

// The files of an artifact are one layer without a digest and of unknown size.
func TestProgressOfAnArtifact(t *testing.T) {
	c, _, errs := clitest.New(nil)
	p := newProgress(c, "x")
	u := &kuriv1.PullProgress{Image: "x",
		Layers: []*kuriv1.LayerProgress{{Done: true, Phase: kuriv1.LayerPhase_LAYER_PHASE_READY}}}
	p.tell(u)
	p.tell(u)
	if got, want := errs.String(), "  the artifact's files: done\n"; got != want {
		t.Errorf("it says %q, want %q", got, want)
	}
}

func TestProgressAsJSON(t *testing.T) {
	c, _, errs := clitest.New(nil)
	c.Format = cli.FormatJSON
	p := newProgress(c, "x")
	for range 2 {
		p.tell(&kuriv1.PullProgress{Image: "x", Layers: []*kuriv1.LayerProgress{{Digest: "d", Size: 7}}})
	}
	lines := strings.Split(strings.TrimSpace(errs.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%q", lines)
	}
	for _, l := range lines {
		var got struct {
			Image  string
			Layers []struct{ Digest, Size string }
		}
		if err := json.Unmarshal([]byte(l), &got); err != nil || got.Image != "x" || got.Layers[0].Size != "7" {
			t.Errorf("%s: %v", l, err)
		}
	}
}
