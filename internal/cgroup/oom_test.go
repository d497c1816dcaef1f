package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

// countingSlice is a directory that looks like a v2 cgroup with children. test/vm shows that the
// kernel counts in this way.
type countingSlice struct {
	t     *testing.T
	dir   string
	total int
}

func newSlice(t *testing.T) *countingSlice {
	s := &countingSlice{t: t, dir: t.TempDir()}
	s.write("", 0)
	return s
}

func (s *countingSlice) write(name string, kills int) {
	s.t.Helper()
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	text := fmt.Sprintf("low 0\nhigh 0\nmax 7\noom 9\noom_kill %d\noom_group_kill 0\n", kills)
	for file, text := range map[string]string{"memory.events": text, "cgroup.procs": ""} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
}

// kill simulates an OOM kill in a child that has had before kills.
func (s *countingSlice) kill(name string, before int) {
	s.total++
	s.write(name, before+1)
	s.write("", s.total)
}

func (s *countingSlice) remove(name string) {
	if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *countingSlice) open(l *OOMLedger, name string) Group {
	s.t.Helper()
	s.write(name, 0)
	dir := filepath.Join(s.dir, name)
	c := Group{procs: dir, memory: dir, v2: true}
	if err := l.Open(c); err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *countingSlice) closed(l *OOMLedger, c Group, want uint64) {
	s.t.Helper()
	if got, err := l.Close(c); err != nil || got != want {
		s.t.Errorf("%s: %d kills, %v; want %d", filepath.Base(c.memory), got, err, want)
	}
}

func TestOOMLedger(t *testing.T) {
	t.Run("a cgroup that is there", func(t *testing.T) {
		l, s := &OOMLedger{}, newSlice(t)
		a, b := s.open(l, "a"), s.open(l, "b")
		s.kill("a", 0)
		s.kill("a", 1)
		s.closed(l, a, 2)
		s.closed(l, b, 0)
		if len(l.parents) > 0 {
			t.Errorf("kept: %v", l.parents)
		}
	})
	t.Run("a cgroup that is gone", func(t *testing.T) {
		l, s := &OOMLedger{}, newSlice(t)
		a, b := s.open(l, "a"), s.open(l, "b")
		s.kill("a", 0)
		s.remove("a")
		s.closed(l, a, 1)
		s.remove("b")
		s.closed(l, b, 0)
	})
	t.Run("others have kills of their own", func(t *testing.T) {
		l, s := &OOMLedger{}, newSlice(t)
		s.kill("init", 0) // not a container
		s.kill("gone", 0) // before the container
		s.remove("gone")
		a, b, c := s.open(l, "a"), s.open(l, "b"), s.open(l, "c")
		s.kill("b", 0)
		s.kill("init", 1)
		s.remove("a")
		s.closed(l, a, 0)
		s.closed(l, b, 1)
		s.remove("b") // after Close
		s.remove("init")
		s.remove("c")
		// Kills of init since it was last read would be counted for c. There are none: it was read
		// when a was closed.
		s.closed(l, c, 0)
	})
	t.Run("one after another", func(t *testing.T) {
		l, s := &OOMLedger{}, newSlice(t)
		stays := s.open(l, "stays")
		for i := range 5 {
			c := s.open(l, fmt.Sprint("c", i))
			if i%2 == 0 {
				s.kill(fmt.Sprint("c", i), 0)
			}
			s.remove(fmt.Sprint("c", i))
			s.closed(l, c, uint64(1-i%2))
		}
		s.closed(l, stays, 0)
	})
	t.Run("two at once", func(t *testing.T) {
		l, s := &OOMLedger{}, newSlice(t)
		a, b, c := s.open(l, "a"), s.open(l, "b"), s.open(l, "c")
		s.kill("a", 0)
		s.remove("a")
		s.remove("b")
		s.closed(l, a, 1)
		d := s.open(l, "d") // must not lose b
		s.closed(l, b, 1)   // of a or b, which is unknown
		s.remove("c")
		s.closed(l, c, 0)
		s.remove("d")
		s.closed(l, d, 0)
	})
	t.Run("nobody can tell", func(t *testing.T) {
		l, s := &OOMLedger{}, newSlice(t)
		if err := os.Remove(filepath.Join(s.dir, "memory.events")); err != nil { // as in the root
			t.Fatal(err)
		}
		a := s.open(l, "a")
		s.closed(l, a, 0)
		b := s.open(l, "b")
		s.remove("b")
		if n, err := l.Close(b); !errors.Is(err, fault.NotFound) || n != 0 {
			t.Errorf("%d kills, %v; want NotFound", n, err)
		}
	})
	t.Run("v1", func(t *testing.T) {
		l, dir := &OOMLedger{}, t.TempDir()
		c := Group{procs: dir, memory: dir}
		if err := os.WriteFile(filepath.Join(dir, "memory.oom_control"),
			[]byte("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := l.Open(c); err != nil {
			t.Fatal(err)
		}
		if n, err := l.Close(c); n != 3 || err != nil {
			t.Errorf("%d kills, %v; want 3", n, err)
		}
	})
}
