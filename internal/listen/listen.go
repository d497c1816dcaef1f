package listen

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
)

// Sockets opens the sockets of one daemon.
type Sockets struct {
	holder  *holder.Client
	systemd map[string]*net.UnixListener // by path, those not opened yet
}

// New takes what systemd has opened for this process. The holder need not serve: then sockets end with this process.
func New(h *holder.Client) *Sockets {
	s := &Sockets{holder: h, systemd: make(map[string]*net.UnixListener)}
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			slog.Warn("systemd has passed a descriptor that is not a listening socket", "name", f.Name(), "err", err)
			continue
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
			s.systemd[u.Addr().String()] = u
		} else {
			slog.Warn("systemd has passed a socket that is not a Unix socket; kurid serves on those alone", "address", l.Addr())
			l.Close()
		}
	}
	return s
}

// Unix returns the listening Unix socket at path, an absolute one, which only its owner may use. A socket that another
// process serves is an error of kind Precondition; one that a dead process left is replaced.
func (s *Sockets) Unix(path string) (net.Listener, error) {
	if l, ok := s.systemd[path]; ok {
		delete(s.systemd, path)
		return l, nil
	}
	if l := s.kept(path); l != nil {
		return l, nil
	}
	l, err := open(path)
	if err != nil {
		return nil, err
	}
	if err := s.keep(path, l); err != nil {
		if !errors.Is(err, fault.Unavailable) {
			slog.Warn("the holder cannot keep a socket: clients are refused while no daemon runs", "socket", path, "err", err)
		}
		return &unlinking{l, path}, nil
	}
	return l, nil
}

// Close gives up what systemd has passed and nobody has asked for.
func (s *Sockets) Close() {
	for path, l := range s.systemd {
		slog.Warn("systemd has passed a socket that is not configured in kurid (listen, image_listen)", "socket", path)
		l.Close()
	}
}

// kept returns the socket at path if the holder has it, and drops earlier ones of that path.
func (s *Sockets) kept(path string) *net.UnixListener {
	names, err := s.holder.Names()
	if err != nil {
		return nil
	}
	want := nameOf(path)
	var found *net.UnixListener
	for _, name := range names {
		if !strings.HasPrefix(name, "listen/") || !strings.HasSuffix(name, path) || strings.Count(name, "/") != strings.Count(path, "/")+1 {
			continue
		}
		if name != want {
			s.holder.Drop(name)
			continue
		}
		f, err := s.holder.Get(name)
		if err != nil {
			continue
		}
		l, err := net.FileListener(f)
		f.Close()
		if u, ok := l.(*net.UnixListener); err == nil && ok {
			u.SetUnlinkOnClose(false)
			found = u
		}
	}
	return found
}

func (s *Sockets) keep(path string, l *net.UnixListener) error {
	f, err := l.File()
	if err != nil {
		return err
	}
	defer f.Close()
	return s.holder.Put(nameOf(path), f)
}

// nameOf is the name under which the holder keeps the socket whose file is at path now; "" when there is none.
func nameOf(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("listen/%d.%d%s", st.Dev, st.Ino, path)
}

// open makes a socket at path.
func open(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make the directory of the socket: %w", err)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fault.New(fault.Precondition, "listen on %s: another process serves it already; end that one, or give this one another path with --listen", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return nil, fault.New(fault.Precondition, "listen on %s: it is there and is not a socket; remove it or give another path", path)
	}
	// The socket is made beside its name and renamed, so that it never stands there with the wrong mode.
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
	l.SetUnlinkOnClose(false) // its name is not tmp any more
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

// unlinking removes its socket's name before it is closed: who dials then is told that nobody is there.
type unlinking struct {
	*net.UnixListener
	path string
}

func (u *unlinking) Close() error {
	os.Remove(u.path)
	return u.UnixListener.Close()
}
