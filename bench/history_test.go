package main

import (
	"encoding/xml"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// result returns a report in which Kuri takes the fraction time of containerd's time and starts
// rate times as many pods.
func result(time, rate float64) *report {
	r := newReport(&options{only: []string{"containerd", "kuri"}})
	r.add("pod ready (Run+Create+Start), host network", "ms", "containerd", 0, 100)
	r.add("pod ready (Run+Create+Start), host network", "ms", "kuri", 0, 100*time)
	r.add("50 at once", "pods/s", "containerd", 0, 10)
	r.add("50 at once", "pods/s", "kuri", 0, 10*rate)
	return r
}

func TestCompareWithTheLastResult(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "history")
	if _, err := lastKept(dir); err == nil || !strings.Contains(err.Error(), "-keep") {
		t.Errorf("without results: %v", err)
	}
	if err := result(0.1, 8).keep(dir); err != nil {
		t.Fatal(err)
	}
	last, err := lastKept(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		time, rate float64
		worse      string
	}{
		{"the same", 0.1, 8, ""},
		{"better", 0.01, 80, ""},
		{"a fifth worse", 0.12, 6.7, ""},
		{"slower", 0.14, 8, "pod ready (Run+Create+Start), host network: Kuri's share of containerd's was 0.1 and is 0.14"},
		{"fewer", 0.1, 5.9, "50 at once"},
	} {
		err := result(c.time, c.rate).compare(last, new(strings.Builder))
		if (err == nil) != (c.worse == "") || err != nil && !strings.Contains(err.Error(), c.worse) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if err := newReport(&options{}).compare(last, new(strings.Builder)); err == nil {
		t.Error("a run without a row of the last one is as good")
	}
}

func TestChart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bench.svg")
	if err := result(0.1, 8).chart(file); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := xml.Unmarshal(data, new(struct{})); err != nil {
		t.Errorf("the picture is no XML: %v", err)
	}
	for _, want := range []string{"100 ms", "10.0 ms", "pod ready, host network", `width="430.0"`, `width="43.0"`} {
		if !strings.Contains(string(data), want) {
			t.Errorf("the picture has no %q:\n%s", want, data)
		}
	}
	if err := newReport(&options{}).chart(file); err == nil {
		t.Error("a picture of nothing was drawn")
	}
}
