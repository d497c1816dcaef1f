package suite

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReadReport(t *testing.T) {
	got, err := ReadReport(write(t, `<testsuites><testsuite>
		<testcase name="[It] one" status="passed"><system-err>much</system-err></testcase>
		<testcase name="[It] two" status="failed"><failure>bad</failure><system-err>said </system-err></testcase>
		<testcase name="[It] three" status="skipped"><skipped message="skipped - no kernel"></skipped></testcase>
		<testcase name="[It] four" status="skipped"><skipped message="skipped"></skipped></testcase>
		<testcase name="[BeforeSuite]" status="passed"></testcase>
		<testcase name="[AfterSuite]" status="failed"><failure>late</failure></testcase>
	</testsuite></testsuites>`), "[It] ")
	want := []Spec{
		{"one", "passed", "much", ""}, {"two", "failed", "said bad", ""}, {"three", "skipped", "", "no kernel"}, {"four",
			"skipped", "", ""},
		{"[AfterSuite]", "failed", "late", ""},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"", "<testsuites/>", "not XML"} {
		if got, err := ReadReport(write(t, text), "[It] "); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestReadExpected(t *testing.T) {
	conditions := map[string]Condition{"here": {Holds: true}, "there": {Reason: "not there"}, "nowhere": {}}
	got, err := ReadExpected(write(t, "# a comment\n\npass a b\nskip c # d # e\nhere f\nthere g\nnowhere h\n"), conditions)
	want := map[string]Expectation{"a b": {Pass: true}, "c # d": {Reason: "e"}, "f": {Pass: true},
		"g": {Reason: "not there"}}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, line := range []string{"pass", "skip a", "skip a # ", "fail a", "pass a\npass a"} {
		if got, err := ReadExpected(write(t, line), conditions); err == nil {
			t.Errorf("%q: %+v", line, got)
		}
	}
}
