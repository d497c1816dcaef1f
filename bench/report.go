package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// report collects the measurements. It is not safe for concurrent use.
type report struct {
	Time     time.Time  `json:"time"`
	Machine  string     `json:"machine"`
	Runtimes []string   `json:"runtimes"`
	Measures []*measure `json:"measures"`

	last int // index of the most recently added measure
}

// measure is one row: the same quantity, measured on each runtime.
type measure struct {
	Name    string              `json:"name"`
	Unit    string              `json:"unit"` // ms, s, KiB, MiB, %, pods/s, MiB/s
	Results map[string]*samples `json:"results"`
	// Ratio is Kuri's median divided by containerd's; nil if one of them is missing.
	Ratio *float64 `json:"ratio,omitempty"`
}

// samples are the values of one measure on one runtime.
type samples struct {
	Rounds [][]float64 `json:"rounds"`
	P50    float64     `json:"p50"`
	P90    float64     `json:"p90"`
	Count  int         `json:"count"`
	// Low and High are the lowest and the highest median of a round: the spread between rounds.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

func newReport(o *options) *report {
	var u unix.Utsname
	unix.Uname(&u)
	return &report{
		Time: time.Now().UTC().Truncate(time.Second),
		Machine: fmt.Sprintf("%d cores, kernel %s, %s", goruntime.NumCPU(), unix.ByteSliceToString(u.Release[:]),
			goruntime.GOARCH),
		Runtimes: o.only,
	}
}

// add adds a value to the row with the given name. The first value creates the row below the most
// recently used one. Rounds count from 0.
func (r *report) add(name, unit, runtime string, round int, value float64) {
	at := slices.IndexFunc(r.Measures, func(m *measure) bool { return m.Name == name })
	if at < 0 {
		at = min(r.last+1, len(r.Measures))
		r.Measures = slices.Insert(r.Measures, at, &measure{Name: name, Unit: unit, Results: map[string]*samples{}})
	}
	r.last = at
	results := r.Measures[at].Results
	if results[runtime] == nil {
		results[runtime] = &samples{}
	}
	s := results[runtime]
	for len(s.Rounds) <= round {
		s.Rounds = append(s.Rounds, nil)
	}
	s.Rounds[round] = append(s.Rounds[round], value)
}

// conclude computes the medians, spreads and ratios.
func (r *report) conclude() {
	for _, m := range r.Measures {
		for _, s := range m.Results {
			s.conclude()
		}
		kuri, peer := m.Results["kuri"], m.Results["containerd"]
		if kuri != nil && peer != nil && peer.P50 != 0 {
			ratio := kuri.P50 / peer.P50
			m.Ratio = &ratio
		}
	}
}

func (s *samples) conclude() {
	var all, medians []float64
	for _, round := range s.Rounds {
		if len(round) > 0 {
			all = append(all, round...)
			medians = append(medians, quantile(round, 0.5))
		}
	}
	s.Count, s.P50, s.P90 = len(all), quantile(all, 0.5), quantile(all, 0.9)
	s.Low, s.High = slices.Min(medians), slices.Max(medians)
}

// quantile returns the q-quantile of values, interpolated linearly between neighbours. values must
// not be empty.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// print writes the table for humans.
func (r *report) print(w io.Writer) {
	r.conclude()
	fmt.Fprintf(w, "\n%s, %s\np50 [p90] (least and greatest median of a round); ratio: Kuri's p50 to containerd's\n\n",
		r.Time.Format(time.DateTime), r.Machine)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\t\t%s\tratio\n", strings.Join(r.Runtimes, "\t"))
	for _, m := range r.Measures {
		fmt.Fprintf(t, "%s\t%s", m.Name, m.Unit)
		for _, name := range r.Runtimes {
			fmt.Fprintf(t, "\t%s", m.Results[name])
		}
		if m.Ratio != nil {
			fmt.Fprintf(t, "\t%.3g", *m.Ratio)
		}
		fmt.Fprintln(t)
	}
	t.Flush()
}

func (s *samples) String() string {
	switch {
	case s == nil:
		return "-"
	case s.Count == 1:
		return short(s.P50)
	case s.Count == len(s.Rounds):
		return fmt.Sprintf("%s (%s–%s)", short(s.P50), short(s.Low), short(s.High))
	}
	return fmt.Sprintf("%s [%s] (%s–%s)", short(s.P50), short(s.P90), short(s.Low), short(s.High))
}

// short formats a value with three significant digits.
func short(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// write stores the report with all single values as JSON.
func (r *report) write(file string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
