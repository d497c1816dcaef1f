package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// persistentListener is a listening socket whose file is recreated when somebody removes it. The
// recreated file belongs to a new socket, because a socket is bound only once. Accepted connections
// go on. It is safe for concurrent use.
type persistentListener struct {
	path string

	mu       sync.Mutex // guards the fields below; not held over anything that blocks
	now      *net.UnixListener
	name     string    // name of the socket in the holder; "": not kept
	own      bool      // the file goes with the socket: nobody else keeps it
	deadline time.Time // for Accept
	closed   bool
}

func (l *persistentListener) current() *net.UnixListener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// Accept returns the next connection.
func (l *persistentListener) Accept() (net.Conn, error) {
	for {
		from := l.current()
		c, err := from.Accept()
		if err == nil || from == l.current() {
			return c, err
		}
	}
}

// SetDeadline makes Accept fail after the deadline.
func (l *persistentListener) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = t
	return l.now.SetDeadline(t)
}

// Close closes the socket. If no one else keeps the socket, its file is removed first, so that
// clients are refused.
func (l *persistentListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own && !l.closed {
		os.Remove(l.path)
	}
	l.closed = true
	return l.now.Close()
}

func (l *persistentListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// gone reports whether the file is missing although the listener is open.
func (l *persistentListener) gone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := os.Lstat(l.path)
	return !l.closed && errors.Is(err, os.ErrNotExist)
}

// replace continues with another socket. It returns the name of the old one in the holder, and
// false if the listener has been closed meanwhile.
func (l *persistentListener) replace(with *net.UnixListener) (before string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return "", false
	}
	with.SetDeadline(l.deadline)
	old := l.now
	before, l.now, l.name, l.own = l.name, with, "", true
	old.Close() // makes its Accept return
	return before, true
}

// A removed file is recreated settleAfter later, because rm -r takes a moment. A failure to
// recreate or watch a file is retried after tryAgain.
const (
	settleAfter = 100 * time.Millisecond
	tryAgain    = 5 * time.Second
)

// watch recreates removed socket files until ctx ends.
func (s *Sockets) watch(ctx context.Context) {
	for ctx.Err() == nil {
		pause := settleAfter
		if err := s.watchOnce(ctx); err != nil {
			slog.Warn("the socket files cannot be watched; checking them periodically", "err", err)
			pause = tryAgain
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		for _, l := range s.all() {
			if !l.gone() {
				continue
			}
			if err := s.restore(l); err != nil {
				slog.Error("a socket was removed and cannot be recreated: nobody can dial it", "socket",
					l.path, "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(tryAgain):
				}
				continue
			}
			slog.Warn("a socket was removed and has been recreated", "socket", l.path)
		}
	}
}

func (s *Sockets) all() []*persistentListener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.open)
}

// watchOnce returns when a socket file has been removed, a socket has been added, or ctx has ended.
func (s *Sockets) watchOnce(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch the files of the sockets: %w", err)
	}
	defer w.Close()
	all := s.all()
	ours := make(map[string]bool)
	for _, l := range all {
		dir := filepath.Dir(l.path)
		ours[l.path], ours[dir] = true, true
		if err := w.Add(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	if slices.ContainsFunc(all, (*persistentListener).gone) {
		return nil // removed before the watch was set up
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.opened:
			return nil
		case e := <-w.Events:
			if ours[e.Name] && (e.Has(fsnotify.Remove) || e.Has(fsnotify.Rename)) {
				return nil
			}
		case err := <-w.Errors:
			return fmt.Errorf("watch the files of the sockets: %w", err)
		}
	}
}

// restore recreates the socket.
func (s *Sockets) restore(l *persistentListener) error {
	fresh, err := open(l.path)
	if err != nil {
		return err
	}
	before, ok := l.replace(fresh)
	if !ok {
		fresh.Close()
		os.Remove(l.path)
		return nil
	}
	if before != "" {
		s.forget(before)
	}
	s.keep(l, fresh)
	return nil
}
