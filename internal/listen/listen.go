package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
)

// Sockets opens the sockets of one daemon.
type Sockets struct {
	holder  *holder.Client
	systemd map[string]*net.UnixListener // by path; not opened yet
	end     context.CancelFunc           // stops renew and watch
	running sync.WaitGroup               // renew and watch

	opened chan struct{} // has an element if there is a socket that watch does not know yet

	// guards the fields below; held while kept sockets are passed to the holder, which is bounded
	mu   sync.Mutex
	kept map[string]*os.File // sockets kept by the holder, by name
	open []*persistentListener
}

// New takes the sockets that systemd has opened for this process. Without a running holder, sockets
// end with this process.
func New(h *holder.Client) *Sockets {
	ctx, end := context.WithCancel(context.Background())
	s := &Sockets{holder: h, systemd: make(map[string]*net.UnixListener), end: end, opened: make(chan struct{}, 1),
		kept: make(map[string]*os.File)}
	s.running.Go(func() { s.renew(ctx) })
	s.running.Go(func() { s.watch(ctx) })
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			slog.Warn("ignoring a descriptor from systemd that is not a listening socket", "name", f.Name(), "err", err)
			continue
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
			s.systemd[u.Addr().String()] = u
		} else {
			slog.Warn("ignoring a socket from systemd that is not a Unix socket", "address", l.Addr())
			l.Close()
		}
	}
	return s
}

// Unix returns the listening Unix socket at path, which must be absolute. Only the owner may use
// it. A socket that another process serves is an error of kind Precondition. A socket left by a
// dead process is replaced. If somebody removes the file, it is recreated.
func (s *Sockets) Unix(path string) (net.Listener, error) {
	l := &persistentListener{path: path}
	inherited := s.systemd[path]
	delete(s.systemd, path)
	switch {
	case s.takeKept(l): // before systemd's, whose file may have been removed and recreated
		if inherited != nil {
			inherited.Close()
		}
	case inherited != nil:
		l.now = inherited
	default:
		made, err := open(path)
		if err != nil {
			return nil, err
		}
		l.now, l.own = made, true
		s.keep(l, made)
	}
	s.mu.Lock()
	s.open = append(s.open, l)
	s.mu.Unlock()
	select {
	case s.opened <- struct{}{}:
	default:
	}
	return l, nil
}

// Close closes unused sockets of systemd and stops watching the others.
func (s *Sockets) Close() {
	s.end()
	s.running.Wait()
	for _, f := range s.kept {
		f.Close()
	}
	for path, l := range s.systemd {
		slog.Warn("systemd has passed a socket that is not configured in kurid (listen, image_listen)", "socket", path)
		l.Close()
	}
}

// takeKept makes l the socket at its path that the holder keeps, if there is one, and drops
// outdated ones of that path.
func (s *Sockets) takeKept(l *persistentListener) bool {
	names, err := s.holder.Names()
	if err != nil {
		return false
	}
	want := nameOf(l.path)
	for _, name := range names {
		if !strings.HasPrefix(name, "listen/") || !strings.HasSuffix(name, l.path) ||
			strings.Count(name, "/") != strings.Count(l.path, "/")+1 {
			continue
		}
		if name != want {
			_ = s.holder.Drop(name)
			continue
		}
		f, err := s.holder.Get(name)
		if err != nil {
			continue
		}
		kept, err := net.FileListener(f)
		if u, ok := kept.(*net.UnixListener); err == nil && ok {
			u.SetUnlinkOnClose(false)
			l.now, l.name = u, name
			s.note(name, f)
			continue
		}
		f.Close()
	}
	return l.now != nil
}

// keep gives l's socket to the holder. If the holder does not take it, the file is removed with
// this process.
func (s *Sockets) keep(l *persistentListener, socket *net.UnixListener) {
	f, err := socket.File()
	if err == nil {
		name := nameOf(l.path)
		if err = s.holder.Put(name, f); err == nil {
			s.note(name, f)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.name, l.own = name, false
			return
		}
		f.Close()
	}
	if !errors.Is(err, fault.Unavailable) {
		slog.Warn("the holder cannot keep a socket: clients are refused while no daemon runs", "socket",
			l.path, "err", err)
	}
}

// forget takes a socket back from the holder.
func (s *Sockets) forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.kept[name]; f != nil {
		f.Close()
		delete(s.kept, name)
	}
	_ = s.holder.Drop(name)
}

// note registers a socket to be passed to the next holder.
func (s *Sockets) note(name string, f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.kept[name]; old != nil {
		old.Close()
	}
	s.kept[name] = f
}

// lookAgain is the interval of looking for a holder while none is running.
const lookAgain = 100 * time.Millisecond

// renew passes the sockets to the successor of a holder that has died.
func (s *Sockets) renew(ctx context.Context) {
	for ctx.Err() == nil {
		ended, err := s.holder.Ended(ctx)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(lookAgain):
			}
			continue
		}
		s.giveAll() // changes nothing if the holder has them
		<-ended     // or ctx has ended
	}
}

func (s *Sockets) giveAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, f := range s.kept {
		if err := s.holder.Put(name, f); err != nil {
			slog.Warn("a socket cannot be given to the new holder: clients are refused while no daemon runs", "name",
				name, "err", err)
		}
	}
}

// nameOf returns the name under which the holder keeps the socket whose file is at path now, or "".
func nameOf(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("listen/%d.%d%s", st.Dev, st.Ino, path)
}

// open creates a socket at path.
func open(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("create the directory of the socket: %w", err)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fault.New(fault.Precondition,
			"listen on %s: another process serves it already; end that one, or give this one another path with "+
				"--listen", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return nil, fault.New(fault.Precondition,
			"listen on %s: it is there and is not a socket; remove it or give another path", path)
	}
	// The socket is created under another name and renamed, so that path never has the wrong mode.
	tmp := path + ".new"
	for _, old := range []string{tmp, path} {
		if err := os.Remove(old); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("remove the old socket: %w", err)
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // tmp no longer exists
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}
