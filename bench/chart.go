package main

import (
	"encoding/xml"
	"fmt"
	"os"
	"slices"
	"strings"
)

// charted has the rows of the chart: the prefix of a measure's name, and its label in the chart.
var charted = []struct{ prefix, label string }{
	{"pod ready (Run+Create+Start), host network", "pod ready, host network"},
	{"pod ready (Run+Create+Start), default network", "pod ready, pod network"},
	{"pod ready (Run+Create+Start), RuntimeDefault", "pod ready, seccomp"},
	{"pod down (Stop+Remove), default network", "pod down, pod network"},
	{"CPU per pod started, default network", "CPU per pod started"},
	{"ExecSync, one at a time", "ExecSync"},
	{"memory per pod (PSS)", "memory per pod"},
	{"ListContainerStats, ", "ListContainerStats"},
}

// The dimensions of the chart in pixels.
const (
	chartWidth = 760
	barLeft    = 190
	barMost    = 430
	barHeight  = 14
	rowHeight  = 46
)

// chart draws the medians of both runtimes as bars into an SVG file. Each row has its own scale.
func (r *report) chart(file string) error {
	r.conclude()
	var rows strings.Builder
	y := 48
	for _, c := range charted {
		at := slices.IndexFunc(r.Measures, func(m *measure) bool { return strings.HasPrefix(m.Name, c.prefix) })
		if at < 0 || r.Measures[at].Ratio == nil {
			continue
		}
		m := r.Measures[at]
		peer, kuri := m.Results["containerd"].P50, m.Results["kuri"].P50
		fmt.Fprintf(&rows, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", barLeft-12, y+18, escaped(c.label))
		for n, v := range []float64{peer, kuri} {
			width := max(1, v/max(peer, kuri)*barMost)
			top := y + n*(barHeight+2)
			fmt.Fprintf(&rows, `<rect x="%d" y="%d" width="%.1f" height="%d" class="%s"/>`+"\n", barLeft, top, width, barHeight,
				[]string{"peer", "kuri"}[n])
			fmt.Fprintf(&rows, `<text x="%.1f" y="%d" class="value">%s %s</text>`+"\n", barLeft+width+6, top+11, short(v),
				escaped(m.Unit))
		}
		y += rowHeight
	}
	if rows.Len() == 0 {
		return fmt.Errorf("draw %s: this run has no row of the picture", file)
	}
	picture := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="13">
<style>text { fill: #444 } .value { font-size: 11px } .peer { fill: #a9b4c2 } .kuri { fill: #b5651d }</style>
<rect width="100%%" height="100%%" fill="#fff"/>
<rect x="%d" y="14" width="12" height="12" class="peer"/><text x="%d" y="25">containerd</text>
<rect x="%d" y="14" width="12" height="12" class="kuri"/><text x="%d" y="25">Kuri</text>
<text x="%d" y="25" class="value">shorter is better; medians, %s, %s</text>
%s</svg>
`, chartWidth, y+8, barLeft, barLeft+18, barLeft+110, barLeft+128, barLeft+190, r.Time.Format("2006-01-02"), escaped(r.Machine), rows.String())
	return os.WriteFile(file, []byte(picture), 0o644)
}

// escaped returns text escaped for XML.
func escaped(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // writing to a Builder does not fail
	return b.String()
}
