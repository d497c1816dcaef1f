package oci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
)

// cgroupFiles restores files of cgroups that systemd overwrites. systemd does so whenever it applies a
// unit's properties to a scope's cgroup (after a daemon-reload or a change of any property) and no
// property has the requested value. Files are restored at once: inotify reports writes to cgroup
// files, but not changes by the kernel.
//
// It is safe for concurrent use. The zero value holds no files. It creates its inotify instance and
// the goroutine that reads from it when the first file is held.
type cgroupFiles struct {
	reader sync.WaitGroup

	mu      sync.Mutex // guards the fields below; held over I/O on cgroup files, which does not hang
	inotify *os.File
	fd      int                // of inotify; File.Fd would make it blocking
	files   map[int32]heldFile // by watch descriptor
}

type heldFile struct {
	id   string // the container's
	path string
	want string
}

// heldNames are the files that systemd sets to its own defaults for each scope. For
// memory.oom.group there is a property (OOMPolicy) of scopes only since version 253, and only at
// their start. For the others, libcontainer sets no property.
var heldNames = []string{"cpu.idle", "io.bfq.weight", "io.weight", "memory.oom.group", "memory.zswap.max"}

// toHold returns the files and values of a container's limits for which its scope has no property.
func toHold(config *configs.Config, paths map[string]string) map[string]string {
	group := cgroup.Of(paths)
	if !config.Cgroups.Systemd || !group.Unified() {
		return nil
	}
	dir := group.Dir()
	r := config.Cgroups.Resources
	files := make(map[string]string)
	if r.BlkioWeight != 0 {
		bfq := filepath.Join(dir, "io.bfq.weight")
		if _, err := os.Stat(bfq); err == nil {
			files[bfq] = strconv.FormatUint(uint64(r.BlkioWeight), 10)
		} else {
			files[filepath.Join(dir, "io.weight")] = strconv.FormatUint(cgroups.ConvertBlkIOToIOWeightValue(r.BlkioWeight), 10)
		}
	}
	for _, name := range heldNames {
		if value, ok := r.Unified[name]; ok {
			files[filepath.Join(dir, name)] = value
		}
	}
	return files
}

// hold watches a container's files from now on, and restores them if they have already changed.
func (h *cgroupFiles) hold(id string, files map[string]string) error {
	if len(files) == 0 {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.open(); err != nil {
		return err
	}
	for path, want := range files {
		watch, err := unix.InotifyAddWatch(h.fd, path, unix.IN_MODIFY)
		if err != nil {
			return fmt.Errorf("watch %s, which systemd writes over: %w", path, err)
		}
		f := heldFile{id, path, want}
		h.files[int32(watch)] = f
		if err := f.putBack(); err != nil {
			return err
		}
	}
	return nil
}

// release stops watching a container's files, including removed ones.
func (h *cgroupFiles) release(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.files, func(watch int32, f heldFile) bool {
		if f.id == id {
			_, _ = unix.InotifyRmWatch(h.fd, uint32(watch)) // fails if the file, and so the watch, is gone
		}
		return f.id == id
	})
}

func (h *cgroupFiles) open() error {
	if h.inotify != nil {
		return nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch the files of a cgroup that systemd writes over (fs.inotify.max_user_instances?): %w", err)
	}
	inotify := os.NewFile(uintptr(fd), "inotify")
	h.inotify, h.fd, h.files = inotify, fd, make(map[int32]heldFile)
	h.reader.Go(func() { h.read(inotify) })
	return nil
}

// close stops watching all files. It returns after the goroutine has ended.
func (h *cgroupFiles) close() {
	h.mu.Lock()
	inotify := h.inotify
	h.inotify, h.files = nil, nil
	h.mu.Unlock()
	if inotify != nil {
		inotify.Close()
	}
	h.reader.Wait()
}

// read restores files when they are written, until the inotify instance is closed.
func (h *cgroupFiles) read(inotify *os.File) {
	buf := make([]byte, 4096)
	for {
		n, err := inotify.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				slog.Error("what systemd writes over limits of containers is not put back any more", "err", err)
			}
			return
		}
		for events := buf[:n]; len(events) >= unix.SizeofInotifyEvent; {
			watch := int32(binary.NativeEndian.Uint32(events))
			mask, name := binary.NativeEndian.Uint32(events[4:]), binary.NativeEndian.Uint32(events[12:])
			events = events[unix.SizeofInotifyEvent+name:]
			fault.Contained(func() error { h.written(watch, mask); return nil }) // a panic has been logged
		}
	}
}

func (h *cgroupFiles) written(watch int32, mask uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if mask&unix.IN_Q_OVERFLOW != 0 { // events were lost: any file may have changed
		for _, f := range h.files {
			f.restore()
		}
		return
	}
	f, ok := h.files[watch]
	if ok && mask&unix.IN_IGNORED != 0 { // the file was removed
		delete(h.files, watch)
	} else if ok {
		f.restore()
	}
}

func (f heldFile) restore() {
	if err := f.putBack(); err != nil {
		slog.Error("systemd has written over a limit, and it cannot be put back", "container", f.id, "file", f.path,
			"limit", f.want, "err", err)
	}
}

// putBack writes the file if it has another value. It does nothing if the file was removed.
func (f heldFile) putBack() error {
	got, err := os.ReadFile(f.path)
	if err == nil && !says(string(got), f.want) {
		if err = writeLines(f.path, f.want); err == nil {
			got, err = os.ReadFile(f.path)
		}
		if err == nil && !says(string(got), f.want) {
			return fmt.Errorf("%s was set to %q, and the kernel made %q of it", f.path, f.want, strings.TrimSpace(string(got)))
		}
	}
	if cgroup.Gone(err) {
		return nil
	}
	return err
}

// writeLines writes a cgroup file line by line, as the kernel requires.
func writeLines(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for line := range strings.Lines(text) {
		if _, err := f.WriteString(line); err != nil {
			return err
		}
	}
	return nil
}

// says reports whether a file has all lines of want. A weight without a device reads as "default
// 200".
func says(got, want string) bool {
	lines := strings.Split(got, "\n")
	for i := range lines {
		lines[i] = strings.Join(strings.Fields(lines[i]), " ")
	}
	for line := range strings.Lines(want) {
		line = strings.Join(strings.Fields(line), " ")
		if line != "" && !slices.Contains(lines, line) && !slices.Contains(lines, "default "+line) {
			return false
		}
	}
	return true
}
