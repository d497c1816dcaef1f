package top

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// topView is the state of kuri top: the newest sample and the settings of its display. Keys change
// it, and lines draws it. It belongs to one goroutine.
type topView struct {
	runtime    string // its name and version
	now        *sampling
	trouble    string // why there is no newer sample; "" if there is
	containers bool   // shows containers rather than pods
	within     string // pod of the containers; "" for all
	order      int    // of topOrders
	reverse    bool
	filter     string
	delay      time.Duration
	selected   string // id of the row
	first      int    // row at the top
	help       bool
	prompt     string // the open prompt: "/" for a filter, "d" for a delay, "" for none
	typed      string
	notice     string // the result of the last key
}

// rows returns the rows that pass the filter, in order.
func (v *topView) rows() []load {
	if v.now == nil {
		return nil
	}
	all := v.now.Pods
	if v.containers {
		all = v.now.Containers
	}
	filter := strings.ToLower(v.filter)
	var out []load
	for _, l := range all {
		if v.containers && v.within != "" && l.Pod != v.within {
			continue
		}
		if strings.Contains(strings.ToLower(l.Pod+"/"+l.Container+" "+l.State+" "+l.ID), filter) {
			out = append(out, l)
		}
	}
	sortLoads(out, topOrders[v.order], v.reverse)
	return out
}

// at returns the index of the selected row, or 0 if that is gone.
func (v *topView) at(rows []load) int {
	return max(0, slices.IndexFunc(rows, func(l load) bool { return l.ID == v.selected }))
}

// move selects the row n rows below the selected one.
func (v *topView) move(n int) {
	rows := v.rows()
	if len(rows) == 0 {
		return
	}
	at := v.at(rows)
	n = min(max(n, -len(rows)), len(rows))
	v.selected = rows[min(max(at+n, 0), len(rows)-1)].ID
}

// The styles of a line on a terminal.
const (
	plain = iota
	heading
	chosen
	alarm
)

// line is one line of the screen.
type line struct {
	text  string
	style int
}

// lines draws the view in at most height lines of at most width columns.
func (v *topView) lines(width, height int) []line {
	var out []line
	if v.help {
		for _, text := range topHelp {
			out = append(out, line{text, plain})
		}
		return fit(out, width, height)
	}
	out = append(out, v.summary()...)
	out = append(out, v.status())
	rows := v.rows()
	out = append(out, line{v.head(width), heading})
	body := max(1, height-len(out))
	at := v.at(rows)
	v.first = min(v.first, max(0, len(rows)-body), at)
	if at >= v.first+body {
		v.first = at - body + 1
	}
	for i := v.first; i < min(len(rows), v.first+body); i++ {
		style := plain
		if i == at {
			style = chosen
		}
		out = append(out, line{v.row(rows[i], width), style})
	}
	if len(rows) == 0 && v.now != nil {
		out = append(out, line{"(nothing here)", plain})
	}
	return fit(out, width, height)
}

// fit cuts lines to the size of a screen.
func fit(lines []line, width, height int) []line {
	lines = lines[:min(len(lines), height)]
	for i := range lines {
		lines[i].text = cli.Cut(cli.Printable(lines[i].text), max(1, width))
	}
	return lines
}

// summary returns the lines about the node and the runtime.
func (v *topView) summary() []line {
	first := "kuri top  " + v.runtime
	if v.now == nil {
		return []line{{first, plain}, {"", plain}}
	}
	first += fmt.Sprintf("  %s  pods %d, ready %d  containers %d, running %d", v.now.Time.Format(time.TimeOnly),
		len(v.now.Pods), v.now.Ready, len(v.now.Containers), v.now.Running)
	cpu, memory := 0.0, 0.0
	for _, p := range v.now.Pods {
		cpu, memory = cpu+max(p.CPU, 0), memory+max(p.Memory, 0)
	}
	second := fmt.Sprintf("pods use %.1f%% of %d00%% cpu, %s", cpu, runtime.NumCPU(), cli.Size(uint64(memory)))
	return []line{{first, plain}, {second + nodeText(os.ReadFile), plain}}
}

// nodeText describes the whole node, as far as /proc has the data.
func nodeText(read func(string) ([]byte, error)) string {
	var out strings.Builder
	if body, err := read("/proc/loadavg"); err == nil {
		if f := strings.Fields(string(body)); len(f) > 2 {
			fmt.Fprintf(&out, "  node: load %s", strings.Join(f[:3], " "))
		}
	}
	if body, err := read("/proc/meminfo"); err == nil {
		var total, available uint64
		for l := range strings.Lines(string(body)) {
			if f := strings.Fields(l); len(f) > 1 {
				n, _ := strconv.ParseUint(f[1], 10, 64)
				switch f[0] {
				case "MemTotal:":
					total = n << 10
				case "MemAvailable:":
					available = n << 10
				}
			}
		}
		if total > 0 {
			fmt.Fprintf(&out, ", %s of %s available", cli.Size(available), cli.Size(total))
		}
	}
	for _, what := range []string{"cpu", "memory", "io"} {
		if body, err := read("/proc/pressure/" + what); err == nil {
			if _, rest, ok := strings.Cut(string(body), "avg10="); ok {
				value, _, _ := strings.Cut(rest, " ")
				fmt.Fprintf(&out, ", %s waits %s%%", what, value)
			}
		}
	}
	return out.String()
}

// status returns the status line: a prompt, an error, or the selection of rows.
func (v *topView) status() line {
	switch {
	case v.prompt == "/":
		return line{"filter: " + v.typed + "_", plain}
	case v.prompt == "d":
		return line{fmt.Sprintf("seconds between samples (now %g): %s_", v.delay.Seconds(), v.typed), plain}
	case v.trouble != "":
		return line{"NO NEW SAMPLE: " + v.trouble, alarm}
	case v.notice != "":
		return line{v.notice, plain}
	}
	what := "pods"
	if v.containers {
		what = "containers"
		if v.within != "" {
			what += " of " + v.within
		}
	}
	text := fmt.Sprintf("%s by %s", what, topOrders[v.order].name)
	if v.reverse {
		text += ", reversed"
	}
	if v.filter != "" {
		text += fmt.Sprintf(", with %q", v.filter)
	}
	return line{text + fmt.Sprintf("  every %gs  (h: help, q: quit)", v.delay.Seconds()), plain}
}

// topColumn is a column of numbers. On a narrow screen those with the smallest worth are omitted.
type topColumn struct {
	head  string
	width int
	worth int
	text  func(load) string
}

var topColumns = []topColumn{
	{"CPU%", 8, 9, func(l load) string { return percent(l.CPU) }},
	{"MEMORY", 10, 9, func(l load) string { return bytesText(l.Memory) }},
	{"MEM%", 7, 3, func(l load) string { return percent(ofLimit(l)) }},
	{"PROC", 6, 4, func(l load) string { return countText(l.Processes) }},
	{"RX/s", 10, 6, func(l load) string { return bytesText(l.Receive) }},
	{"TX/s", 10, 6, func(l load) string { return bytesText(l.Send) }},
	{"DISK", 10, 5, func(l load) string { return bytesText(l.Disk) }},
	{"CPUw", 6, 2, func(l load) string { return percent(l.WaitCPU) }},
	{"MEMw", 6, 1, func(l load) string { return percent(l.WaitMemory) }},
	{"IOw", 6, 1, func(l load) string { return percent(l.WaitIO) }},
}

// The widths of the columns of text: the state, and the minimum for a name.
const (
	stateWidth = 9
	leastName  = 16
)

// columns returns the columns that fit on a screen, and the widths of the names.
func (v *topView) columns(width int) (shown []topColumn, pod, container int) {
	least := leastName
	if v.containers {
		least = 2 * leastName
	}
	shown = slices.Clone(topColumns)
	room := func() int {
		left := width - stateWidth
		for _, c := range shown {
			left -= c.width
		}
		return left
	}
	for room() < least && len(shown) > 2 {
		out := 0
		for i, c := range shown {
			if c.worth <= shown[out].worth {
				out = i
			}
		}
		shown = slices.Delete(shown, out, out+1)
	}
	names := max(least, room())
	if !v.containers {
		return shown, names, 0
	}
	return shown, names - names*2/5, names * 2 / 5
}

func (v *topView) head(width int) string {
	shown, pod, container := v.columns(width)
	out, state := padded("POD", pod), "READY"
	if v.containers {
		out, state = out+padded("CONTAINER", container), "STATE"
	}
	out += padded(state, stateWidth)
	for _, c := range shown {
		out += fmt.Sprintf("%*s", c.width, c.head)
	}
	return out
}

func (v *topView) row(l load, width int) string {
	shown, pod, container := v.columns(width)
	out := padded(l.Pod, pod)
	if v.containers {
		out += padded(l.Container, container)
	}
	out += padded(l.State, stateWidth)
	for _, c := range shown {
		out += fmt.Sprintf("%*s", c.width, c.text(l))
	}
	return out
}

// ofLimit returns the memory usage in percent of the limit.
func ofLimit(l load) float64 {
	if l.Limit <= 0 || l.Memory < 0 {
		return unknown
	}
	return l.Memory / l.Limit * 100
}

// padded returns a text cut and padded to a column, with a space at the end.
func padded(s string, width int) string {
	return cli.Pad(cli.Cut(cli.Printable(s), max(1, width-1)), width)
}

func percent(f float64) string {
	if f < 0 || math.IsNaN(f) {
		return "-"
	}
	return fmt.Sprintf("%.1f", f)
}

func countText(f float64) string {
	if f < 0 {
		return "-"
	}
	return fmt.Sprint(int64(f))
}

func bytesText(f float64) string {
	if f < 0 {
		return "-"
	}
	return strings.ReplaceAll(strings.TrimSuffix(cli.Size(uint64(f)), "B"), " ", "")
}

var topHelp = strings.Split(`kuri top: what pods and containers use

  Tab, p, c        pods or containers        Enter  the containers of the selected pod     Esc  back, or no filter
  P M T D W N      sort by cpu, memory, network (traffic), disk, pressure (waiting), name  R    the other way round
  < >              sort by the column to the left, to the right
  Up Down k j      select; PgUp PgDn, Home End g G
  /                filter: what is in a name, a state or an id
  d, s             seconds between samples                                                 Space  a sample now
  h, ?             this page                                                               q, Ctrl-C  quit

  CPU% is of one core. MEMORY is the working set, MEM% of the limit. RX/s and TX/s are the pod's network, DISK what was written
  on root filesystems. CPUw, MEMw and IOw: percent of the last ten seconds in which something waited for it (PSI, cgroup v2).
  A dash: the runtime does not tell it.`, "\n")
