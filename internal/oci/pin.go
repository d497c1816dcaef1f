package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// pins hold the containers' state.json open, to write it again if someone removes the state
// directory while they run. That takes one descriptor for each container. The zero value is ready
// for concurrent use.
type pins struct {
	mu    sync.Mutex // guards files
	files map[string]*os.File
}

// pin opens a container's current state.json. Code that replaces the file must call it again. A
// file that cannot be opened is missed only after a removal.
func (p *pins) pin(root, id string) {
	f, err := os.Open(filepath.Join(root, id, stateFile))
	if err != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.files == nil {
		p.files = make(map[string]*os.File)
	}
	if old := p.files[id]; old != nil {
		old.Close()
	}
	p.files[id] = f
}

func (p *pins) unpin(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.files[id]; f != nil {
		f.Close()
		delete(p.files, id)
	}
}

// read returns a container's pinned state.json. The error wraps fs.ErrNotExist if there is none.
func (p *pins) read(id string) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.files[id]
	if f == nil {
		return nil, fmt.Errorf("the runtime's record of container %s was removed: %w", id, fs.ErrNotExist)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	body := make([]byte, st.Size())
	_, err = f.ReadAt(body, 0)
	return body, err
}

// stateFile is libcontainer's record of a container.
const stateFile = "state.json"

// Pin pins the records of a container of an earlier process, as Create does.
func (l *Libcontainer) Pin(id string) { l.pins.pin(l.root, id) }

// Restore writes the runtime's records of a container again if someone has removed them. pid is its
// first process, and waits reports whether it is still waiting for its start. Existing records are
// not changed.
func (l *Libcontainer) Restore(id string, pid int, waits bool) error {
	dir := filepath.Join(l.root, id)
	if _, err := os.Stat(filepath.Join(dir, stateFile)); err == nil {
		return nil
	}
	body, err := l.pins.read(id)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	if waits {
		if err := restoreStartLine(dir, pid); err != nil {
			return err
		}
	}
	tmp := filepath.Join(dir, stateFile+".new")
	if err := errors.Join(os.WriteFile(tmp, body, 0o600), os.Rename(tmp, filepath.Join(dir, stateFile))); err != nil {
		return fmt.Errorf("write the record of container %s again: %w", id, err)
	}
	l.pins.pin(l.root, id)
	return nil
}

// restoreStartLine creates the name of the process's start line again: a link to the process's
// descriptor of the FIFO.
func restoreStartLine(dir string, pid int) error {
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(fds)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(fds, e.Name())
		var st unix.Stat_t
		name, err := os.Readlink(path)
		if err != nil || !strings.Contains(filepath.Base(name), startFile) || unix.Stat(path, &st) != nil ||
			st.Mode&unix.S_IFMT != unix.S_IFIFO {
			continue
		}
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			return err
		}
		if string(args) == forkServerName+"\x00" { // our own init; see Waits
			if err := os.WriteFile(filepath.Join(dir, nativeFile), nil, 0o600); err != nil {
				return err
			}
		}
		line := filepath.Join(dir, startFile)
		os.Remove(line)
		return os.Symlink(path, line)
	}
	return fmt.Errorf("process %d has no start line any more", pid)
}
