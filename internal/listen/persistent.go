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

// lasting is a listening socket whose file comes back when somebody has removed it: with another socket behind it, since a
// socket has its name from the beginning or never. Connections that were accepted go on. It is safe for concurrent use.
type lasting struct {
	path string

	mu       sync.Mutex // guards what follows; held over nothing that waits
	now      *net.UnixListener
	name     string    // under which the holder has now; "" when it does not
	own      bool      // the file goes with the socket: nobody else has that
	deadline time.Time // of Accept
	closed   bool
}

func (l *lasting) current() *net.UnixListener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// Accept returns the next connection.
func (l *lasting) Accept() (net.Conn, error) {
	for {
		from := l.current()
		c, err := from.Accept()
		if err == nil || from == l.current() {
			return c, err
		}
	}
}

// SetDeadline has Accept fail from then on.
func (l *lasting) SetDeadline(t time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline = t
	return l.now.SetDeadline(t)
}

// Close closes the socket. One that is this process's alone loses its file before: who dials then is told that nobody is
// there.
func (l *lasting) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.own && !l.closed {
		os.Remove(l.path)
	}
	l.closed = true
	return l.now.Close()
}

func (l *lasting) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

// gone reports whether the file is not there, and should be.
func (l *lasting) gone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err := os.Lstat(l.path)
	return !l.closed && errors.Is(err, os.ErrNotExist)
}

// replace has the listener go on with another socket. It returns the name under which the holder has the one before, and
// false when the listener has been closed meanwhile.
func (l *lasting) replace(with *net.UnixListener) (before string, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return "", false
	}
	with.SetDeadline(l.deadline)
	old := l.now
	before, l.now, l.name, l.own = l.name, with, "", true
	old.Close() // whose Accept returns
	return before, true
}

// What was removed is made anew once nothing more has been removed for settleAfter: rm -r takes a moment. What could not
// be made anew, or not be watched, is looked at again after tryAgain.
const (
	settleAfter = 100 * time.Millisecond
	tryAgain    = 5 * time.Second
)

// watch makes the files of sockets anew that somebody removes, until ctx ends.
func (s *Sockets) watch(ctx context.Context) {
	for ctx.Err() == nil {
		pause := settleAfter
		if err := s.watchOnce(ctx); err != nil {
			slog.Warn("the files of the sockets cannot be watched; they are looked at now and then", "err", err)
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
				slog.Error("a socket was removed and is not made anew: nobody can dial it", "socket", l.path, "err", err)
				select {
				case <-ctx.Done():
				case <-time.After(tryAgain):
				}
				continue
			}
			slog.Warn("a socket was removed, and was made anew", "socket", l.path)
		}
	}
}

func (s *Sockets) all() []*lasting {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.open)
}

// watchOnce returns when a socket's file has been removed, when there is another socket, and when ctx has ended.
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
	if slices.ContainsFunc(all, (*lasting).gone) {
		return nil // it went before the watch was there
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

// restore makes the socket anew.
func (s *Sockets) restore(l *lasting) error {
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
