package main

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// logMax bounds the keeper's log, in bytes. One rotated log of that size is kept.
const logMax = 1 << 20

// logFile is the keeper's own log. It is an io.Writer, safe for concurrent use.
type logFile struct {
	path string

	mu     sync.Mutex // guards all below
	file   *os.File
	size   int64
	stderr bool // the file is also descriptor 2, for the Go runtime's output in a crash
}

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	l.file, l.size = f, st.Size()
	return nil
}

// Write appends one entry.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > logMax {
		l.rotate()
	} else if _, err := os.Lstat(l.path); err != nil {
		l.replace() // it was removed
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *logFile) rotate() {
	if os.Rename(l.path, l.path+".1") != nil || !l.replace() {
		l.size = 0 // retry after another logMax bytes
	}
}

// replace opens a new file. The caller holds l.mu.
func (l *logFile) replace() bool {
	old := l.file
	if l.open() != nil {
		return false
	}
	old.Close()
	if l.stderr {
		_ = unix.Dup3(int(l.file.Fd()), 2, 0)
	}
	return true
}

func (l *logFile) becomeStderr() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stderr = true
	_ = unix.Dup3(int(l.file.Fd()), 2, 0)
}
