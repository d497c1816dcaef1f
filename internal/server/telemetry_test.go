package server

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/kuri-cri/kuri/internal/step"
)

// page is the table of docs/observe.md as selfRows have it.
func page() string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | |\n|---|---|---|---|\n")
	for _, r := range selfRows {
		labels := ""
		if r.labels != nil {
			labels = "`" + strings.Join(r.labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", r.name, r.kind, labels, strings.TrimSuffix(r.help, "."))
	}
	return b.String()
}

func TestThePageHasAllMetrics(t *testing.T) {
	body, err := os.ReadFile("../../docs/observe.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := page(); !strings.Contains(string(body), want) {
		t.Errorf("the table in docs/observe.md is not this one:\n%s", want)
	}
}

// What is gathered is in the table, and named as Prometheus wants it.
func TestMetricsKeepTheConventions(t *testing.T) {
	s := &Server{}
	s.operations = step.New(s.ended)
	s.telemetry = newTelemetry(s, Options{Version: "9.9"})
	_, op := s.operations.Begin(t.Context(), "StartContainer", step.Subject{}, step.Caller{})
	s.telemetry.steps(step.Report{Kind: "StartContainer", Steps: []step.Step{{Name: "process", Took: time.Second}}})
	families, err := s.telemetry.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "kuri_") {
			continue
		}
		seen++
		i := slices.IndexFunc(selfRows, func(r *selfRow) bool { return r.name == f.GetName() })
		if i < 0 || strings.ToLower(f.GetType().String()) != string(selfRows[i].kind) {
			t.Errorf("%s, a %s, is not in the table", f.GetName(), f.GetType())
		}
		if f.GetName() == "kuri_operations_in_flight" && len(f.GetMetric()) != len(changes) {
			t.Errorf("%v", f)
		}
	}
	if seen < 4 {
		t.Errorf("%d metrics", seen)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "kuri_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	op.Answer(nil)
}
