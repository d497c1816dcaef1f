package server

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLogIsRotatedBeforeItGrowsBeyond(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0[x].log")
	if err := os.WriteFile(path+".20200101-000000", []byte("a kubelet's\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "0x.log.1")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := openLog(logPlace{path: path}, logLimits{size: 1000, files: 2})
	if err != nil {
		t.Fatal(err)
	}
	l := &lines{stream: "stdout", log: log}
	for i := range 100 {
		l.add(fmt.Appendf(nil, "line %d of some length\n", i))
	}
	log.close()
	files, err := filepath.Glob(globEscape(path) + "*")
	if err != nil || len(files) != 3 {
		t.Fatalf("files %q, %v", files, err)
	}
	slices.Sort(files)
	files = append(files[1:], files[0]) // oldest first
	var all []byte
	for _, f := range files {
		body, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if len(body) > 1000 || len(body) == 0 || body[len(body)-1] != '\n' {
			t.Errorf("%s has %d bytes", f, len(body))
		}
		all = append(all, body...)
	}
	// The end is kept, without a gap.
	n := bytes.Count(all, []byte("\n"))
	for i, line := range strings.Split(strings.TrimSpace(string(all)), "\n") {
		if want := fmt.Sprintf("line %d of", 100-n+i); !strings.Contains(line, want) {
			t.Fatalf("entry %d of %d is %q, want %q", i, n, line, want)
		}
	}
	if _, err := os.Stat(other); err != nil {
		t.Errorf("the file of another log: %v", err)
	}
}

func TestLogRateSaysWhatItDrops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := openLog(logPlace{path: path}, logLimits{rate: 1000})
	if err != nil {
		t.Fatal(err)
	}
	l := &lines{stream: "stdout", log: log}
	start := time.Now()
	for range 1000 {
		l.add([]byte(strings.Repeat("x", 99) + "\n"))
	}
	log.close()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	most := 1000*(rateBurst+time.Since(start).Seconds()) + 1000
	if n := float64(len(body)); n > most || n < 9000 {
		t.Errorf("%d bytes were written", len(body))
	}
	entries := strings.Split(strings.TrimSpace(string(body)), "\n")
	last := entries[len(entries)-1]
	var dropped, size, rate int
	_, text, _ := strings.Cut(last, " stderr F [kuri] ")
	if _, err := fmt.Sscanf(text, "%d lines (%d bytes) were dropped: this container may log %d bytes a second", &dropped,
		&size, &rate); err != nil || rate != 1000 {
		t.Fatalf("the last entry is %q: %v", last, err)
	}
	if dropped+strings.Count(string(body), " stdout F ") != 1000 && strings.Count(string(body), "[kuri]") == 1 {
		t.Errorf("%d dropped, %d written", dropped, strings.Count(string(body), " stdout F "))
	}
}

func TestAllowanceComesBack(t *testing.T) {
	var a allowance
	now := time.Unix(1000, 0)
	if !a.take(10000, 1000, now) || a.take(1, 1000, now) {
		t.Error("the burst is not ten seconds' worth")
	}
	if !a.take(2000, 1000, now.Add(2*time.Second)) || a.take(1, 1000, now.Add(2*time.Second)) {
		t.Error("two seconds do not give two seconds' worth")
	}
	if a.take(10001, 1000, now.Add(time.Hour)) || !a.take(10000, 1000, now.Add(time.Hour)) {
		t.Error("an hour gives more than the burst")
	}
}

// A note about dropped output must not become part of a line, and must not join two lines.
func TestTheNoteOnDropsIsALineOfItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := openLog(logPlace{path: path}, logLimits{rate: 4000})
	if err != nil {
		t.Fatal(err)
	}
	out, diag := &lines{stream: "stdout", log: log}, &lines{stream: "stderr", log: log}
	out.add([]byte(strings.Repeat("x", partMax+1))) // its first part is written
	out.add([]byte(strings.Repeat("y", 2*partMax))) // all of the rest except its end is dropped
	log.allowed = allowance{bytes: log.allowed.bytes, lines: log.allowed.lines}
	out.add([]byte("\nnext\n"))
	diag.add([]byte("question? "))
	diag.flush()
	log.allowed.bytes, log.allowed.lines = 7, 1
	log.close()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for entry := range strings.Lines(string(body)) {
		_, entry, _ = strings.Cut(strings.TrimSuffix(entry, "\n"), " ")
		got = append(got, entry[:min(len(entry), 16)])
	}
	want := []string{"stdout P xxxxxxx", "stdout F ", "stderr F [kuri] ", "stdout F y", "stdout F next",
		"stderr P questio", "stdout F [kuri] "}
	if !slices.Equal(got, want) {
		t.Errorf("entries %q, want %q", got, want)
	}
}
