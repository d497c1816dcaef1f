package crilog

import (
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func gz(t *testing.T, path, content string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := gzip.NewWriter(f)
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReadRotatedFiles(t *testing.T) {
	path := logFile(t, line("g")+line("h"))
	gz(t, path+".20260101-000000.gz", line("a")+line("b"))
	gz(t, path+".20260102-000000.gz", line("c")+line("d"))
	if err := os.WriteFile(path+".20260102-000000", []byte(line("c")+line("d")), 0o600); err != nil { // being compressed
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".20260103-000000.000000001", []byte(line("e")+stamp+" stdout F f"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{".20260101-000000.gz.tmp", ".bak", ".20260103", "x.20260101-000000"} {
		if err := os.WriteFile(path+other, []byte(line("foreign")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := strings.Split("a b c d e f g h", " ")
	for tail := -1; tail < 10; tail++ {
		want := all
		if tail >= 0 {
			want = all[max(0, len(all)-tail):]
		}
		got, err := collect(context.Background(), path, Options{Tail: tail})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("tail %d: %q %v, want %q", tail, got, err, want)
		}
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path+".20260101-000000.gz", old, old); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".20260101-000000.gz", []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := collect(context.Background(), path, Options{Tail: All}); err == nil ||
		!strings.Contains(err.Error(), "20260101-000000.gz") {
		t.Errorf("a damaged file: %v", err)
	}
	// without the damaged one
	if got, err := collect(context.Background(), path, Options{Tail: 3}); err != nil || len(got) != 3 {
		t.Error(got, err)
	}
}

// TestBetweenRenameAndReopen removes the log for a moment, as a kubelet's rotation does.
func TestARotatedFileEndsInALongLine(t *testing.T) {
	path := logFile(t, line("after"))
	if err := os.WriteFile(path+".20240101-000000", []byte(cutLine()), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := collect(context.Background(), path, Options{Tail: All})
	if err != nil || len(got) != 3 || got[1] != "" || got[2] != "after" {
		t.Errorf("%d entries, the last %.40q: %v", len(got), got[len(got)-1], err)
	}
}

func TestBetweenRenameAndReopen(t *testing.T) {
	path := logFile(t, line("b"))
	if err := os.WriteFile(path+".20260101-000000", []byte(line("a")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".20260102-000000"); err != nil {
		t.Fatal(err)
	}
	if got, err := collect(t.Context(), path, Options{Tail: All}); err != nil || !slices.Equal(got, []string{"a", "b"}) {
		t.Error(got, err)
	}
	looked := 0
	got, err := collect(t.Context(), path, Options{Tail: 1, Follow: func(context.Context) (bool, error) {
		if looked++; looked == 1 {
			return false, os.WriteFile(path, []byte(line("c")), 0o600)
		}
		return true, nil
	}})
	if err != nil || !slices.Equal(got, []string{"b", "c"}) {
		t.Error(got, err)
	}
}

// TestFollowLosesNoRotation rotates much faster than Read polls.
func TestFollowLosesNoRotation(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	path := logFile(t, "")
	var ended atomic.Bool
	var got []string
	done := make(chan error, 1)
	go func() {
		done <- Read(ctx, path, Options{Tail: All, Follow: func(context.Context) (bool, error) { return ended.Load(), nil }},
			func(e Entry) error { got = append(got, string(e.Text)); return nil })
	}()
	time.Sleep(2 * pollEvery)
	begin := time.Now()
	const files, lines = 100, 20
	n := 0
	for i := range files {
		tmp := filepath.Join(filepath.Dir(path), "next")
		var b strings.Builder
		for range lines {
			b.WriteString(line(fmt.Sprint(n)))
			n++
		}
		if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		stamp := begin.Add(time.Duration(i) * time.Millisecond).UTC().Format(".20060102-150405.000000000")
		if err := os.Rename(path, path+stamp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	ended.Store(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for i, text := range got {
		if text != fmt.Sprint(i) {
			t.Fatalf("entry %d is %s", i, text)
		}
	}
	if len(got) != n {
		t.Errorf("%d entries of %d", len(got), n)
	}
}
