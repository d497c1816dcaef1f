package pod

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// measure counts a directory without pauses.
func measure(dir string) diskUsage {
	one := &count{dir: dir, of: &usage{counted: make(chan struct{})}}
	for !one.slice() {
	}
	return one.of.known()
}

func TestWhatIsOnTheDiskIsCounted(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a", 1<<20)
	write("sub/b", 1<<20)
	for _, err := range []error{
		os.Symlink("/usr", filepath.Join(dir, "out")),
		os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "sub/again")),
		unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	u := measure(dir)
	if want := uint64(6); u.inodes != want { // itself, a, sub, sub/b, out, pipe
		t.Errorf("%d inodes, want %d", u.inodes, want)
	}
	if u.bytes < 2<<20 || u.bytes > 2<<20+64<<10 {
		t.Errorf("%d bytes", u.bytes)
	}
	if u := measure(filepath.Join(dir, "gone")); u.inodes != 0 || u.at.IsZero() {
		t.Errorf("a directory that is not there: %+v", u)
	}
}

// A process in a container can create trees that are deeper than PATH_MAX.
func TestADeepTreeIsCounted(t *testing.T) {
	dir := t.TempDir()
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 250)
	const depth = 60 // 15,000 bytes
	for range depth {
		if err := unix.Mkdirat(at, name, 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(at)
		if err != nil {
			t.Fatal(err)
		}
		at = next
	}
	unix.Close(at)
	if u := measure(dir); u.inodes != depth+1 {
		t.Errorf("%d inodes", u.inodes)
	}
}

// A directory that is replaced by a link while it waits to be read must not be followed.
func TestALinkInADirectorysPlaceIsNotFollowed(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(other, "secret"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w, err := newWalk(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if err := os.Symlink(other, filepath.Join(dir, "sub")); err != nil {
		t.Fatal(err)
	}
	w.dirs = []string{"sub", "sub/deeper", "../" + filepath.Base(other)}
	if done, err := w.step(time.Now().Add(time.Minute)); !done || err != nil || w.inodes != 1 {
		t.Errorf("%v, %v, %d inodes", done, err, w.inodes)
	}
}

// many creates count files below dir.
func many(t *testing.T, dir string, count int) {
	t.Helper()
	for i := range count {
		sub := filepath.Join(dir, fmt.Sprint(i/500))
		if i%500 == 0 {
			if err := os.MkdirAll(sub, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		fd, err := unix.Open(filepath.Join(sub, fmt.Sprint(i)), unix.O_CREAT|unix.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
}

// A time slice ends within a directory with many entries, and between many empty ones.
func TestASliceEndsWithinADirectory(t *testing.T) {
	for what, fill := range map[string]func(name string) error{
		"files":       func(name string) error { return os.WriteFile(name, nil, 0o600) },
		"directories": func(name string) error { return os.Mkdir(name, 0o700) },
	} {
		dir := t.TempDir()
		const entries = 1500 // two reads of the directory
		for i := range entries {
			must(t, fill(filepath.Join(dir, fmt.Sprint(i))))
		}
		w, err := newWalk(dir)
		must(t, err)
		defer w.close()
		steps, most, done := 0, uint64(0), false
		for ; !done; steps++ {
			before := w.inodes
			if done, err = w.step(time.Time{}); err != nil { // the slice is over at once
				t.Fatal(err)
			}
			most = max(most, w.inodes-before)
		}
		if w.inodes != entries+1 || steps < entries || most != 1 {
			t.Errorf("%s: %d inodes, want %d, in %d steps of up to %d", what, w.inodes, entries+1, steps, most)
		}
	}
}

func TestALargeDirectoryDelaysNobody(t *testing.T) {
	large, little := t.TempDir(), t.TempDir()
	const files = 30_000
	many(t, large, files)
	many(t, little, 10)

	var c counter
	defer c.close()
	var of, other usage
	done := c.refresh(&of, large)
	for !of.long.Load() && of.last.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	select {
	case <-c.refresh(&other, little):
	case <-done:
		t.Error("a little one waited for the large one")
	}
	if got := other.known(); got.inodes != 12 {
		t.Errorf("the little one: %+v", got)
	}
	if again := c.refresh(&of, large); again != done {
		t.Error("it is counted twice at once")
	}
	<-done
	got := of.known()
	if want := uint64(files + files/500 + 1); got.inodes != want || of.quick() {
		t.Errorf("%d inodes, want %d, quick: %t", got.inodes, want, of.quick())
	}
	// The next count is due after a multiple of the duration of the last one.
	if of.stale(time.Now()) || of.stale(got.at.Add(countShare*got.took-1)) ||
		!of.stale(got.at.Add(max(countAge, countShare*got.took))) {
		t.Errorf("stale: %+v", got)
	}
}

func TestCountsFromManySidesAndAnEndInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	many(t, dir, 5000)
	var c counter
	var usages [20]usage
	var wg sync.WaitGroup
	for i := range usages {
		wg.Go(func() {
			for range 20 {
				c.refresh(&usages[i], dir)
				time.Sleep(time.Millisecond)
			}
		})
	}
	wg.Wait()
	c.close()
	if c.refresh(&usage{}, dir) != nil {
		t.Error("counting goes on after the end")
	}
}

// The counts that are queued at the end leave no descriptor open, and nobody waiting.
func TestQueuedCountsAreDroppedAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	walk, err := newWalk(dir)
	must(t, err)
	must(t, walk.advance())
	root, fd := walk.root, walk.fd
	begun, queued := usage{counted: make(chan struct{})}, usage{counted: make(chan struct{})}
	waits := []<-chan struct{}{begun.counted, queued.counted}
	c := counter{
		closed: true,
		slow:   []*count{{dir: dir, of: &begun, walk: walk}},
		quick:  []*count{{dir: dir, of: &queued}},
	}
	c.run()
	for n, done := range waits {
		select {
		case <-done:
		default:
			t.Errorf("count %d is still waited for", n)
		}
	}
	for _, fd := range []int{root, fd} {
		if name, _ := os.Readlink(fmt.Sprint("/proc/self/fd/", fd)); name == dir {
			t.Errorf("descriptor %d is open", fd)
		}
	}
	if begun.known() != (diskUsage{}) || queued.known() != (diskUsage{}) {
		t.Errorf("an incomplete count is known: %+v, %+v", begun.known(), queued.known())
	}
}
