package pod

import (
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// lists is what a look at every pod keeps from one to the next. A kubelet lists all pods every second, so a look at a
// thousand of them must not make a call for each file: the mount table says when it has changed, and a
// directory of cgroups is read once for all pods in it.
type lists struct {
	mu     sync.Mutex // held over a look: who lists meanwhile sees what it has found
	opened bool       // the mount table
	mounts int        // its descriptor. Go's poller must not have it: who polls first is told of a change, and nobody else
}

// lookAll looks at every sandbox.
func (p *Pods) lookAll() {
	p.lists.mu.Lock()
	defer p.lists.mu.Unlock()
	mounts, cgroups := p.lists.mountsChanged(), make(directories)
	for _, s := range p.allSandboxes() {
		r := s.Record()
		if r.State != Ready {
			continue
		}
		why := ""
		if mounts {
			why = missingNetns(r.NetnsPath)
		}
		if why == "" {
			why = p.missingCgroup(s, r, cgroups.lacks)
		}
		if why != "" {
			s.lose(why)
		}
	}
}

// mountsChanged reports whether the mount table may have changed since the last call.
func (l *lists) mountsChanged() bool {
	if !l.opened {
		fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		l.opened, l.mounts = err == nil, fd // tells of changes after this; without it every look is a full one
		return true
	}
	// See proc_pid_mountinfo(5): a change is told once.
	poll := []unix.PollFd{{Fd: int32(l.mounts), Events: unix.POLLPRI}}
	_, err := unix.Poll(poll, 0)
	return err != nil || poll[0].Revents != 0
}

func (l *lists) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.opened {
		unix.Close(l.mounts)
		l.opened = false
	}
}

// lacksFile reports whether there is no file at path.
func lacksFile(path string) bool { return unix.Access(path, unix.F_OK) == unix.ENOENT }

// directories are the names in directories, each read once.
type directories map[string]map[string]bool

// lacks is [lacksFile] of a path that was there before the first call.
func (d directories) lacks(path string) bool {
	parent, name := filepath.Split(path)
	names, read := d[parent]
	if !read {
		names = entriesOf(parent)
		d[parent] = names
	}
	return !names[name] && lacksFile(path)
}

// entriesOf returns the names in a directory, none when it cannot be read.
func entriesOf(dir string) map[string]bool {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	all, err := f.Readdirnames(-1)
	if err != nil {
		return nil
	}
	names := make(map[string]bool, len(all))
	for _, name := range all {
		names[name] = true
	}
	return names
}
