package server

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// FuzzLines checks that the log has all of the output in well-formed entries of limited length,
// however the output is split into pieces.
func FuzzLines(f *testing.F) {
	f.Add([]byte("one\ntwo"), uint16(3))
	f.Add([]byte("\n\n\x00\xff"), uint16(1))
	f.Add(bytes.Repeat([]byte("long "), 10000), uint16(4096))
	f.Add(append(bytes.Repeat([]byte("x"), partMax), '\n'), uint16(partMax))
	f.Fuzz(func(t *testing.T, data []byte, piece uint16) {
		log, err := openLog(logPlace{path: filepath.Join(t.TempDir(), "log")}, logLimits{})
		if err != nil {
			t.Fatal(err)
		}
		defer log.close()
		l := &lines{stream: "stderr", log: log}
		size := int(piece) + 1
		for rest := data; len(rest) > 0; {
			n := min(size, len(rest))
			l.add(rest[:n])
			rest = rest[n:]
		}
		l.flush()
		checkLog(t, log.path, data)
	})
}

func checkLog(t *testing.T, path string, data []byte) {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	last := "F"
	for line := range bytes.Lines(body) {
		parts := bytes.SplitN(line, []byte(" "), 4)
		if len(parts) != 4 || string(parts[1]) != "stderr" || len(parts[3]) > partMax+1 || parts[3][len(parts[3])-1] != '\n' {
			t.Fatalf("entry %.80q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, string(parts[0])); err != nil {
			t.Fatal(err)
		}
		last = string(parts[2])
		switch last {
		case "F":
			got = append(got, parts[3]...)
		case "P":
			got = append(got, parts[3][:len(parts[3])-1]...)
		default:
			t.Fatalf("tag %q", parts[2])
		}
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("got %d bytes, want %d", len(got), len(data))
	}
	if ended := len(data) == 0 || data[len(data)-1] == '\n'; ended != (last == "F") {
		t.Fatalf("the last entry is %s, and the output ended with a newline: %v", last, ended)
	}
}

// A rotation races with the container's exit, which closes the log before the exit is reported.
func TestAClosedLogIsNotMadeAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log, err := openLog(logPlace{path: path}, logLimits{})
	if err != nil {
		t.Fatal(err)
	}
	log.close()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := log.reopen(); !errors.Is(err, fault.Precondition) {
		t.Errorf("reopened: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is made anew: %v", err)
	}
}

func TestATornEntryIsEnded(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: a small disk needs root")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=8k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	log, err := openLog(logPlace{path: filepath.Join(disk, "log")}, logLimits{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.close()
	l := &lines{stream: "stdout", log: log}
	for range 3 {
		l.add([]byte(strings.Repeat("y", 5000) + "\n"))
	}
	if log.dropped == 0 || !log.torn {
		t.Fatalf("dropped %d, torn %v: the disk was not full", log.dropped, log.torn)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	l.add([]byte("after\n"))
	body, err := os.ReadFile(log.path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(string(body), " stdout F after\n") || strings.Count(string(body), "\n") != 3 ||
		log.dropped != 0 {
		t.Errorf("log of %d bytes ends with %q", len(body), body[max(0, len(body)-60):])
	}
}

// A last line without a newline is partial, whatever happened to the file before.
func TestTheRestOfALineIsPartial(t *testing.T) {
	for name, between := range map[string]func(*testing.T, *lines){
		"nothing":  func(*testing.T, *lines) {},
		"rotation": func(_ *testing.T, l *lines) { l.log.limits.size = 1 },
		"reopen": func(t *testing.T, l *lines) {
			if err := errors.Join(os.Rename(l.log.path, l.log.path+".1"), l.log.reopen()); err != nil {
				t.Error(err)
			}
		},
		"rate": func(_ *testing.T, l *lines) { l.log.limits.rate = 1000 },
		"drops": func(_ *testing.T, l *lines) {
			l.log.limits.rate = 1000
			l.add([]byte(strings.Repeat("x", partMax) + "\n")) // more than the rate's burst
		},
	} {
		for _, stream := range streams {
			log, err := openLog(logPlace{path: filepath.Join(t.TempDir(), "log")}, logLimits{files: 3})
			if err != nil {
				t.Fatal(err)
			}
			l := &lines{stream: stream, log: log}
			l.add([]byte("before\n"))
			between(t, l)
			l.add([]byte("DONE"))
			l.flush()
			log.close()
			body, err := os.ReadFile(log.path)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(string(body), " "+stream+" P DONE\n") {
				t.Errorf("%s, %s: the log ends with %.80q", name, stream, body[max(0, len(body)-80):])
			}
		}
	}
}
