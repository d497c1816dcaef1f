package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// worse is the factor by which a ratio may exceed the last kept result. The machines are shared,
// and the ratio of one run differs from that of the next by a fifth.
const worse = 4.0 / 3

// keep adds the report, without single values, to a directory of results as DATE-TIME.json.
func (r *report) keep(dir string) error {
	r.conclude()
	short := *r
	short.Measures = nil
	for _, m := range r.Measures {
		c := *m
		c.Results = map[string]*samples{}
		for name, s := range m.Results {
			of := *s
			of.Rounds = nil
			c.Results[name] = &of
		}
		short.Measures = append(short.Measures, &c)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return short.write(filepath.Join(dir, r.Time.Format("2006-01-02-1504")+".json"))
}

// lastKept reads the newest result in a directory filled by keep.
func lastKept(dir string) (*report, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has no results to compare with: bench/run -keep %s makes one", dir, dir)
	}
	file := slices.Max(files) // the names are times
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	last := new(report)
	if err := json.Unmarshal(data, last); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return last, nil
}

// compare prints the changes of the ratios of all rows that both reports have. It returns an error
// if one is worse by more than a third.
func (r *report) compare(last *report, w io.Writer) error {
	r.conclude()
	var found []error
	compared := 0
	for _, m := range r.Measures {
		at := slices.IndexFunc(last.Measures, func(o *measure) bool { return o.Name == m.Name })
		if at < 0 || m.Ratio == nil || last.Measures[at].Ratio == nil || *last.Measures[at].Ratio == 0 || *m.Ratio == 0 {
			continue
		}
		compared++
		before := *last.Measures[at].Ratio
		factor := *m.Ratio / before
		if m.rate() {
			factor = 1 / factor
		}
		fmt.Fprintf(w, "%-60s %.3g, was %.3g\n", m.Name, *m.Ratio, before)
		if factor > worse {
			found = append(found, fmt.Errorf("%s: Kuri's share of containerd's was %.3g and is %.3g", strings.TrimSpace(m.Name),
				before, *m.Ratio))
		}
	}
	if compared == 0 {
		return errors.New("the last result has no row of this run")
	}
	return errors.Join(found...)
}

// rate reports whether a greater value is better.
func (m *measure) rate() bool { return strings.HasSuffix(m.Unit, "/s") }
