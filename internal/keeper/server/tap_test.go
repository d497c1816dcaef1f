package server

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tapProcess is set in the environment of a process that is only a tap, which the test kills.
const tapProcess = "KURI_TEST_TAP"

func newTap(fd int, log *logFile) *tap {
	unix.SetNonblock(fd, true)
	return &tap{
		stream: "stderr", file: os.NewFile(uintptr(fd), "output"), log: log,
		hold: func(string, *os.File) {}, send: func([]byte) {},
	}
}

// The log has all of the output, and an attached client receives it once, however it is split into
// pieces.
func TestTapCopiesAll(t *testing.T) {
	for _, c := range []struct {
		name   string
		pieces []string
	}{
		{"lines", []string{"one\n", "two\nthree\n"}},
		{"a line in pieces", []string{"o", "n", "e", "\n", "two\n"}},
		{"no newline at the end", []string{"one\ntw", "o"}},
		{"a long line", []string{strings.Repeat("x", partMax-1), strings.Repeat("y", 3*partMax), "\nnext"}},
		{"a piece that fills the pipe after the beginning of a line",
			[]string{"begin ", strings.Repeat("z", 300<<10) + "\n"}},
		{"single bytes", strings.Split(strings.Repeat("abcdefgh", 100)+"\n", "")},
	} {
		t.Run(c.name, func(t *testing.T) {
			log, err := openLog(logPlace{path: filepath.Join(t.TempDir(), "log")}, logLimits{})
			if err != nil {
				t.Fatal(err)
			}
			defer log.close()
			read, write, err := pipe()
			if err != nil {
				t.Fatal(err)
			}
			tap := newTap(read, log)
			var heard bytes.Buffer
			tap.send = func(data []byte) { heard.Write(data) }
			done := make(chan struct{})
			go func() { tap.follow(); close(done) }()
			out := os.NewFile(uintptr(write), "output")
			for _, piece := range c.pieces {
				if _, err := out.WriteString(piece); err != nil {
					t.Fatal(err)
				}
				if len(c.pieces) < 10 {
					time.Sleep(5 * time.Millisecond) // so that it arrives as a separate piece
				}
			}
			out.Close()
			select {
			case <-done:
			case <-time.After(10 * time.Second):
				t.Fatal("the tap waits for output that is there")
			}
			want := strings.Join(c.pieces, "")
			if heard.String() != want {
				t.Errorf("heard were %d bytes, want %d", heard.Len(), len(want))
			}
			checkLog(t, log.path, []byte(want))
		})
	}
}

// As a last resort, a tap that cannot open pipes consumes what it reads, and loses nothing while it
// lives.
func TestTapWithoutDescriptors(t *testing.T) {
	log, err := openLog(logPlace{path: filepath.Join(t.TempDir(), "log")}, logLimits{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.close()
	read, write, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	tap := newTap(read, log)
	out := os.NewFile(uintptr(write), "output")
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	scratch.mu.Lock()
	free := scratch.free
	scratch.free = nil
	scratch.mu.Unlock()
	none := limit
	none.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { tap.follow(); close(done) }()
	out.WriteString("one\ntw")
	time.Sleep(20 * time.Millisecond)
	out.WriteString("o\n")
	out.Close()
	<-done
	unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	scratch.free = free
	checkLog(t, log.path, []byte("one\ntwo\n"))
}

// A keeper is killed at any moment, and another continues. No line is missing, and only lines of
// the last piece before a kill are repeated.
func TestTapIsKilled(t *testing.T) {
	if os.Getenv(tapProcess) != "" {
		runTap()
		return
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	read, write, err := pipe()
	if err != nil {
		t.Fatal(err)
	}
	rest, err := newPipePair()
	if err != nil {
		t.Fatal(err)
	}
	defer rest.close()
	const enough = 40 // kills
	var kills atomic.Int32
	lines := make(chan int, 1)
	out := os.NewFile(uintptr(write), "output")
	go func() { // pieces end anywhere
		defer out.Close()
		var text []byte
		i := 0
		for ; kills.Load() < enough; i++ {
			text = fmt.Appendf(text, "%d is a line\n", i)
			if n := rand.IntN(9000); len(text) > n {
				out.Write(text[:n])
				text = text[n:]
			}
		}
		out.Write(text)
		lines <- i
	}()

	for ended := false; !ended; {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestTapIsKilled$")
		cmd.Env = append(os.Environ(), tapProcess+"="+path)
		cmd.Stderr = os.Stderr
		cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(duplicate(t, read)), "output"),
			os.NewFile(uintptr(duplicate(t, rest.read)), "rest")}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for _, f := range cmd.ExtraFiles {
			f.Close()
		}
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		// It works once it has started. The last one finds nothing to do and exits.
		before := size(path)
		for len(exited) == 0 && size(path) == before {
			time.Sleep(100 * time.Microsecond)
		}
		select {
		case err := <-exited:
			if err != nil {
				t.Fatal(err)
			}
			ended = true
		case <-time.After(time.Duration(rand.IntN(4000)) * time.Microsecond):
			cmd.Process.Kill()
			<-exited
			kills.Add(1)
		}
	}
	unix.Close(read)
	t.Logf("%d kills", kills.Load())
	checkRepeats(t, path, <-lines)
}

func duplicate(t *testing.T, fd int) int {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return dup
}

func size(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// runTap is the main function of the process that is killed.
func runTap() {
	log, err := reopenLog(logPlace{path: os.Getenv(tapProcess)}, logLimits{})
	if err != nil {
		panic(err)
	}
	tap := newTap(3, log)
	if tap.rest, err = pipePairOf(4); err != nil {
		panic(err)
	}
	tap.follow()
	os.Exit(0)
}

// checkRepeats reads numbered lines. Each must be the next one, or one of the previous piece if
// that is repeated.
func checkRepeats(t *testing.T, path string, lines int) {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next, repeated, line := 0, 0, ""
	cut := false // the previous line was the end of a number
	for entry := range strings.Lines(string(body)) {
		parts := strings.SplitN(strings.TrimSuffix(entry, "\n"), " ", 4)
		if len(parts) != 4 || !strings.HasSuffix(entry, "\n") {
			t.Fatalf("entry %.80q", entry)
		}
		if line += parts[3]; parts[2] == "P" {
			continue
		}
		number, _, _ := strings.Cut(line, " ")
		n, err := strconv.Atoi(number)
		if line != number+" is a line" || err != nil {
			// The end of a line whose beginning is already in the log, or a repeated beginning.
			repeated++
			line = ""
			continue
		}
		line = ""
		switch {
		case n > next:
			t.Fatalf("line %d follows line %d", n, next-1)
		case n < next:
			repeated++
			const recent = 2 * pieceMax / len("0 is a line\n")
			wasCut := cut
			if cut = next-n > recent; cut && (wasCut || !endsOneOf(number, next-recent, next)) {
				t.Fatalf("line %d comes again after line %d: more than a piece", n, next-1)
			}
		default:
			next++
			cut = false
		}
	}
	if next != lines {
		t.Errorf("the log ends with line %d, want %d", next-1, lines-1)
	}
	t.Logf("%d of %d lines stand twice", repeated, lines)
}

// endsOneOf reports whether digits end one of the numbers from..to-1. A repeated piece may begin
// within a number: the part before "9064 is a line" may have been written as the end of the
// previous piece.
func endsOneOf(digits string, from, to int) bool {
	for n := max(0, from); n < to; n++ {
		if strings.HasSuffix(strconv.Itoa(n), digits) {
			return true
		}
	}
	return false
}

// The output of a terminal is handled alike.
func TestTapOfATerminal(t *testing.T) {
	log, err := openLog(logPlace{path: filepath.Join(t.TempDir(), "log")}, logLimits{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.close()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIP: no terminals here: %v", err)
	}
	number, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIP: %v", err)
	}
	tap := newTap(master, log)
	if tap.transit, err = newPipePair(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { tap.follow(); close(done) }()
	var want strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&want, "%d on the terminal\n", i)
	}
	if _, err := slave.WriteString(want.String()); err != nil {
		t.Fatal(err)
	}
	slave.WriteString("$ ")
	slave.Close()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the tap does not end with its terminal")
	}
	checkLog(t, log.path, []byte(strings.ReplaceAll(want.String(), "\n", "\r\n")+"$ "))
}
