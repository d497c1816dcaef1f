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

// Serve serves requests until ctx ends. ready is called once, when the sockets accept connections.
func (s *Server) Serve(ctx context.Context, ready func()) error {
	srv, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(contain))
	if err != nil {
		return err
	}
	api.RegisterKeeperService(srv, &wire{s})

	// 1. The sockets. If a file was removed, Restore listens on a new socket; existing connections
	// continue.
	var served sync.WaitGroup
	defer served.Wait()
	failed := make(chan error, 1)
	serve := map[string]func(net.Listener){
		"keeper.sock": func(l net.Listener) {
			if err := srv.Serve(ctx, l); ctx.Err() == nil && !errors.Is(err, ttrpc.ErrServerClosed) {
				select {
				case failed <- err:
				default: // another server has already failed
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
			if l == nil { // it exists
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

	// 2. The watch for removed files.
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

// files is the set of the keeper's sockets, which Restore creates again. The zero value is ready
// for use.
type files struct {
	mu      sync.Mutex        // guards all below; held over Restore, which waits for no container
	sockets map[string]fileID // ours, by path
	again   func() error      // listens on each missing socket; nil while the keeper does not serve
}

// fileID distinguishes files at the same path.
type fileID struct{ dev, ino uint64 }

// idOf returns the identity of the file at path, or the zero value if there is none.
func idOf(path string) fileID {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return fileID{}
	}
	return fileID{st.Dev, st.Ino}
}

// serve calls listen, and makes each Restore call it, until end.
func (f *files) serve(listen func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.again = listen
	return listen()
}

// end removes the socket files. They are not restored any more.
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

// listen creates a socket at path, or returns nil if ours exists. It is created under another name
// and renamed, so that it never has the wrong mode at path. The lock must be held.
func (f *files) listen(path string) (net.Listener, error) {
	if id := idOf(path); id != (fileID{}) && id == f.sockets[path] {
		return nil, nil
	}
	tmp := filepath.Join(filepath.Dir(path), ".new.sock") // the shortest name: socket paths have a length limit
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // its name is no longer tmp
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
