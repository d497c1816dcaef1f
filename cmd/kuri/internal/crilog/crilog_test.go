package crilog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const stamp = "2024-01-02T03:04:05.678901234Z"

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		line    string
		stream  Stream
		partial bool
		text    string
		bad     bool
	}{
		{line: stamp + " stdout F hello world", stream: Stdout, text: "hello world"},
		{line: stamp + " stderr P half", stream: Stderr, partial: true, text: "half"},
		{line: stamp + " stdout F ", stream: Stdout},
		{line: stamp + " stdout F", stream: Stdout},
		{line: stamp + " stdout P:x:y more tags", stream: Stdout, partial: true, text: "more tags"},
		{line: "2024-01-02T03:04:05+01:00 stdout F x", stream: Stdout, text: "x"},
		{line: stamp + " stdout F  spaces kept ", stream: Stdout, text: " spaces kept "},
		{line: "", bad: true},
		{line: stamp, bad: true},
		{line: stamp + " stdin F x", bad: true},
		{line: stamp + " stdout X x", bad: true},
		{line: stamp + " stdout FF x", bad: true},
		{line: "yesterday stdout F x", bad: true},
		{line: `{"log":"x\n","stream":"stdout"}`, bad: true},
	} {
		e, err := Parse([]byte(tt.line))
		if (err != nil) != tt.bad {
			t.Errorf("%q: %v", tt.line, err)
			continue
		}
		if !tt.bad && (e.Stream != tt.stream || e.Partial != tt.partial || string(e.Text) != tt.text || e.Time.IsZero()) {
			t.Errorf("%q: %+v", tt.line, e)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(stamp + " stdout F hello"))
	f.Add([]byte(stamp + " stderr P:z "))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, err := Parse(line)
		if err == nil && (e.Stream != Stdout && e.Stream != Stderr || !bytes.HasSuffix(line, e.Text)) {
			t.Errorf("%q: %+v", line, e)
		}
	})
}

func line(text string) string { return stamp + " stdout F " + text + "\n" }

func logFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// collect returns the texts of all entries, partial ones with a + at the end.
func collect(ctx context.Context, path string, o Options) ([]string, error) {
	var out []string
	err := Read(ctx, path, o, func(e Entry) error {
		text := string(e.Text)
		if e.Partial {
			text += "+"
		}
		out = append(out, text)
		return nil
	})
	return out, err
}

func TestRead(t *testing.T) {
	three := line("a") + line("b") + line("c")
	mid, _ := time.Parse(time.RFC3339, "2024-06-01T00:00:00Z")
	for _, tt := range []struct {
		name, content string
		o             Options
		want          []string
	}{
		{"all", three, Options{Tail: All}, []string{"a", "b", "c"}},
		{"empty", "", Options{Tail: All}, nil},
		{"tail", three, Options{Tail: 2}, []string{"b", "c"}},
		{"tail of more than there is", three, Options{Tail: 9}, []string{"a", "b", "c"}},
		{"tail of nothing", three, Options{Tail: 0}, nil},
		{"tail of an unfinished line", three + stamp + " stdout F d", Options{Tail: 2}, []string{"c", "d"}},
		{"partial", stamp + " stdout P he\n" + line("llo"), Options{Tail: All}, []string{"he+", "llo"}},
		{"not in the format", "what\n" + line("a"), Options{Tail: All}, []string{"what", "a"}},
		{"since", line("old") + strings.Replace(line("new"), "2024-01", "2024-07", 1), Options{Tail: All, Since: mid},
			[]string{"new"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := collect(context.Background(), logFile(t, tt.content), tt.o)
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("got %q %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestTailAcrossChunks(t *testing.T) {
	var b strings.Builder
	for i := range 5000 {
		b.WriteString(line(fmt.Sprintf("line %d", i)))
	}
	got, err := collect(context.Background(), logFile(t, b.String()), Options{Tail: 3000})
	if err != nil || len(got) != 3000 || got[0] != "line 2000" || got[2999] != "line 4999" {
		t.Errorf("%d lines, %v", len(got), err)
	}
}

func TestALineWithoutEndIsBounded(t *testing.T) {
	long := strings.Repeat("x", 3*maxLine)
	path := logFile(t, line(long)+line("after"))
	var total, pieces int
	var last string
	err := Read(context.Background(), path, Options{Tail: All}, func(e Entry) error {
		if len(e.Text) > maxLine+chunk {
			t.Errorf("a piece of %d bytes", len(e.Text))
		}
		if e.Time.IsZero() || e.Stream != Stdout {
			t.Errorf("a piece lost its header: %v %v", e.Time, e.Stream)
		}
		if last = string(e.Text); last != "after" {
			total += len(e.Text)
			pieces++
			if e.Partial != (total < len(long)) {
				t.Errorf("piece %d: partial %t", pieces, e.Partial)
			}
		}
		return nil
	})
	if err != nil || total != len(long) || pieces < 3 || last != "after" {
		t.Errorf("%v: %d bytes in %d pieces, last %.10q", err, total, pieces, last)
	}
}

// cutLine is the beginning of a line, of which one piece is emitted.
func cutLine() string {
	header := stamp + " stdout F "
	return header + strings.Repeat("x", maxLine-len(header))
}

// A line that is cut off after a piece of it does not continue in the line after it.
func TestALongLineIsCutOff(t *testing.T) {
	for name, cut := range map[string]func(r *reader) error{
		"by a rotation": func(r *reader) error {
			if err := os.Rename(r.path, r.path+".20240101-000000"); err != nil {
				return err
			}
			return os.WriteFile(r.path, []byte(line("after")), 0o600)
		},
		"by a truncation": func(r *reader) error { return os.WriteFile(r.path, []byte(line("after")), 0o600) },
		"at the end":      nil,
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			r := &reader{path: logFile(t, cutLine()), emit: func(e Entry) error {
				if e.Time.IsZero() {
					t.Errorf("%.10q has lost its header", e.Text)
				}
				got = append(got, fmt.Sprintf("%.5s %t", e.Text, e.Partial))
				return nil
			}}
			defer r.close()
			if err := errors.Join(r.open(t.Context()), r.drain(t.Context())); err != nil {
				t.Fatal(err)
			}
			want := []string{"xxxxx true", " false"}
			if cut != nil {
				want = append(want, "after false")
				err := cut(r)
				turned, terr := r.turn(t.Context())
				if err := errors.Join(err, terr, r.drain(t.Context())); err != nil || !turned {
					t.Fatalf("turned %t: %v", turned, err)
				}
			}
			if err := r.rest(); err != nil || !slices.Equal(got, want) {
				t.Errorf("%q, want %q: %v", got, want, err)
			}
		})
	}
}

func TestFollowThroughRotation(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	path := filepath.Join(t.TempDir(), "0.log") // does not exist yet
	var ended atomic.Bool
	entries := make(chan string, 100)
	done := make(chan error, 1)
	go func() {
		done <- Read(ctx, path, Options{Tail: All, Follow: func(context.Context) (bool, error) { return ended.Load(), nil }},
			func(e Entry) error { entries <- string(e.Text); return nil })
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-entries:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-ctx.Done():
			t.Fatalf("no %q", want)
		}
	}
	write := func(f *os.File, s string) {
		t.Helper()
		if _, err := f.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	create := func() *os.File {
		t.Helper()
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}

	time.Sleep(2 * pollEvery)
	f := create()
	write(f, line("one"))
	expect("one")
	write(f, stamp+" stdout F tw")
	time.Sleep(2 * pollEvery) // an incomplete line is not an entry
	write(f, "o\n")
	expect("two")

	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	write(f, line("three, into the renamed file"))
	time.Sleep(2 * pollEvery)
	write(f, line("four, just before the new file"))
	f = create()
	write(f, line("five"))
	expect("three, into the renamed file")
	expect("four, just before the new file")
	expect("five")

	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * pollEvery)
	write(f, line("six, after it was cut"))
	expect("six, after it was cut")

	write(f, line("last"))
	ended.Store(true)
	expect("last")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestFollowEndsWithItsContextAndItsErrors(t *testing.T) {
	path := logFile(t, line("a"))
	ctx, cancel := context.WithTimeout(context.Background(), 3*pollEvery)
	defer cancel()
	running := func(context.Context) (bool, error) { return false, nil }
	if _, err := collect(ctx, path, Options{Tail: All, Follow: running}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("context: %v", err)
	}
	gone := errors.New("gone")
	if _, err := collect(context.Background(), path,
		Options{Tail: All, Follow: func(context.Context) (bool, error) { return false, gone }}); !errors.Is(err, gone) {
		t.Errorf("error of Follow: %v", err)
	}
	if err := Read(context.Background(), path, Options{Tail: All},
		func(Entry) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("error of emit: %v", err)
	}
	if _, err := collect(context.Background(), path+".none", Options{Tail: All}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if got, err := collect(context.Background(), path+".none",
		Options{Tail: All, Follow: func(context.Context) (bool, error) { return true, nil }}); err != nil || got != nil {
		t.Errorf("ended without a log: %q %v", got, err)
	}
}
