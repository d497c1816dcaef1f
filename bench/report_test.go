package main

import (
	"slices"
	"strings"
	"testing"
)

func TestQuantile(t *testing.T) {
	for _, test := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{[]float64{7}, 0.5, 7},
		{[]float64{7}, 0.9, 7},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 2, 3}, 0.5, 2.5},
		{[]float64{0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100}, 0.9, 90},
		{[]float64{1, 2}, 1, 2},
	} {
		if got := quantile(test.values, test.q); got != test.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", test.values, test.q, got, test.want)
		}
	}
}

func TestReport(t *testing.T) {
	r := newReport(&options{only: []string{"containerd", "kuri"}})
	for round, values := range [][]float64{{100, 120, 110}, {130, 130, 130}} {
		for _, v := range values {
			r.add("pod ready", "ms", "containerd", round, v)
			r.add("pod ready", "ms", "kuri", round, v/10)
		}
	}
	r.add("  … shim", "KiB", "containerd", 0, 5000)
	r.add("pod ready", "ms", "containerd", 1, 130)
	r.add("  … sandbox", "ms", "kuri", 1, 1)
	var out strings.Builder
	r.print(&out)
	for _, want := range []string{"130 [130] (110–130)", "12.5 [13.0] (11.0–13.0)", "  0.0962\n", "  … shim  ", "5000"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table has no %q:\n%s", want, out.String())
		}
	}
	var names []string
	for _, m := range r.Measures {
		names = append(names, m.Name)
	}
	if want := []string{"pod ready", "  … sandbox", "  … shim"}; !slices.Equal(names, want) {
		t.Errorf("the rows are %q, want %q", names, want)
	}
	if ratio := r.Measures[2].Ratio; ratio != nil {
		t.Errorf("a measure of one runtime has the ratio %v", *ratio)
	}
}

func TestProgramName(t *testing.T) {
	for exe, want := range map[string]string{
		"/work/bin/kurid":                             "kurid",
		"/usr/bin/kurid (deleted)":                    "kurid",
		"/memfd:runc_cloned:kuri-keeper (deleted)":    "kuri-keeper",
		"/memfd:runc_cloned:/proc/self/exe (deleted)": "exe",
	} {
		if got := programName(exe); got != want {
			t.Errorf("programName(%q) = %q, want %q", exe, got, want)
		}
	}
}
