package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// Serve listens and answers until ctx ends. Ready is called once when the sockets take connections.
func (s *Server) Serve(ctx context.Context, ready func()) error {
	srv, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(contain))
	if err != nil {
		return err
	}
	api.RegisterKeeperService(srv, &wire{s})

	// 1. The sockets. Restore listens anew on one whose file was removed; connections to the old one go on.
	var served sync.WaitGroup
	defer served.Wait()
	failed := make(chan error, 1)
	serve := map[string]func(net.Listener){
		"keeper.sock": func(l net.Listener) {
			if err := srv.Serve(ctx, l); ctx.Err() == nil && !errors.Is(err, ttrpc.ErrServerClosed) {
				select {
				case failed <- err:
				default: // another has failed already
				}
			}
		},
		"keeper-session.sock": func(l net.Listener) { s.serveSessions(l.(*net.UnixListener)) },
	}
	listen := func() error {
		for name, serve := range serve {
			l, err := s.files.listen(filepath.Join(s.state, name))
			if err != nil {
				return err
			}
			if l == nil { // it is there
				continue
			}
			served.Go(func() { serve(l) })
			context.AfterFunc(ctx, func() { l.Close() })
		}
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer srv.Close()
	if err := s.files.serve(listen); err != nil {
		return err
	}

	// 2. Whoever removes our files is noticed.
	served.Go(func() { s.watchFiles(ctx) })
	go s.succeedHolder() // ends with this process
	ready()
	select {
	case <-ctx.Done():
		s.files.end()
		return nil
	case err := <-failed:
		return err
	}
}

// files are the keeper's sockets, which Restore makes anew. The zero value is ready for use.
type files struct {
	mu      sync.Mutex        // guards all below; held over Restore, which waits for no container
	sockets map[string]fileID // ours, by path
	again   func() error      // listens on each socket that is not there; nil while nobody serves
}

// fileID tells one file from another at the same path.
type fileID struct{ dev, ino uint64 }

// idOf returns the file at path, the zero value for none.
func idOf(path string) fileID {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return fileID{}
	}
	return fileID{st.Dev, st.Ino}
}

// serve calls listen, as each Restore does from now on, until end.
func (f *files) serve(listen func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.again = listen
	return listen()
}

// end removes the sockets' files; nothing is made anew any more.
func (f *files) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.again = nil
	for path, id := range f.sockets {
		if idOf(path) == id {
			os.Remove(path)
		}
	}
}

// listen makes a socket at path; nil when ours is there already. It is made beside its name and renamed, so that it never
// stands there with the wrong mode. The lock is held.
func (f *files) listen(path string) (net.Listener, error) {
	if id := idOf(path); id != (fileID{}) && id == f.sockets[path] {
		return nil, nil
	}
	tmp := filepath.Join(filepath.Dir(path), ".new.sock") // shorter than any name: a socket's path is limited
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
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
	if f.sockets == nil {
		f.sockets = make(map[string]fileID)
	}
	f.sockets[path] = idOf(path)
	return l, nil
}
