package pod

import (
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// lists is the state between two checks of all pods. A kubelet lists all pods every second, so a check of a thousand
// pods must not make a system call for each file. The mount table reports when it has changed, and a directory of
// cgroups is read once for all pods in it.
type lists struct {
	mu     sync.Mutex // held during a check: concurrent lists see its result
	opened bool       // whether mounts is open
	mounts int        // descriptor of the mount table. Go's poller must not use it: only the first poll reports a change
}

// lookAll checks every sandbox, as look does.
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
		l.opened, l.mounts = err == nil, fd // reports later changes; without it every check is a full one
		return true
	}
	// See proc_pid_mountinfo(5): a change is reported once.
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

// lacksFile reports whether path does not exist.
func lacksFile(path string) bool { return unix.Access(path, unix.F_OK) == unix.ENOENT }

// directories caches the names in directories. Each directory is read once.
type directories map[string]map[string]bool

// lacks is [lacksFile] for a path that existed before the first call.
func (d directories) lacks(path string) bool {
	parent, name := filepath.Split(path)
	names, read := d[parent]
	if !read {
		names = entriesOf(parent)
		d[parent] = names
	}
	return !names[name] && lacksFile(path)
}

// entriesOf returns the names in a directory, nil if it cannot be read.
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
