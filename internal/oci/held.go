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

// held are files of cgroups that systemd writes over, whenever it brings a scope's cgroup in line with the unit's
// properties (after a daemon-reload, after any property has changed), because no property says what was asked for. They
// are put back at once: inotify tells of writes to files of cgroups, other than of changes that the kernel makes.
//
// It is safe for concurrent use. The zero value holds nothing, and makes its inotify instance, and the goroutine that reads
// from it, when there is something to hold.
type held struct {
	reader sync.WaitGroup

	mu      sync.Mutex // guards all below; held over reads and writes of cgroup files, which do not hang
	inotify *os.File
	fd      int                // that of inotify, which File.Fd would make a blocking one
	files   map[int32]heldFile // by watch descriptor
}

type heldFile struct {
	id   string // of the container
	path string
	want string
}

// heldNames are files that systemd writes for each scope with a default of its own: memory.oom.group, which scopes have as
// a property (OOMPolicy) since version 253, and then only from their start on; the rest as libcontainer translates no
// such limit into a property.
var heldNames = []string{"cpu.idle", "io.bfq.weight", "io.weight", "memory.oom.group", "memory.zswap.max"}

// toHold lists the files that a container's limits say something of and no property of its scope does.
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

// hold keeps these files of a container at these values from now on, and puts them back if they have changed already.
func (h *held) hold(id string, files map[string]string) error {
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

// release lets go of a container's files, those that are gone too.
func (h *held) release(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.files, func(watch int32, f heldFile) bool {
		if f.id == id {
			unix.InotifyRmWatch(h.fd, uint32(watch)) // or the file has gone, and the watch with it
		}
		return f.id == id
	})
}

func (h *held) open() error {
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

// close lets go of all files. It returns when the goroutine has ended.
func (h *held) close() {
	h.mu.Lock()
	inotify := h.inotify
	h.inotify, h.files = nil, nil
	h.mu.Unlock()
	if inotify != nil {
		inotify.Close()
	}
	h.reader.Wait()
}

// read puts files back as they are written, until the instance is closed.
func (h *held) read(inotify *os.File) {
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
			fault.Contained(func() error { h.written(watch, mask); return nil }) // which has logged a panic
		}
	}
}

func (h *held) written(watch int32, mask uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if mask&unix.IN_Q_OVERFLOW != 0 { // events were lost: any file may have been written
		for _, f := range h.files {
			f.restore()
		}
		return
	}
	f, ok := h.files[watch]
	if ok && mask&unix.IN_IGNORED != 0 { // the file is gone
		delete(h.files, watch)
	} else if ok {
		f.restore()
	}
}

func (f heldFile) restore() {
	if err := f.putBack(); err != nil {
		slog.Error("systemd has written over a limit, and it cannot be put back", "container", f.id, "file", f.path, "limit", f.want, "err", err)
	}
}

// putBack writes the file where it does not say what was asked for. One that is gone is right.
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

// writeLines writes a file of a cgroup, each line by itself, as the kernel wants it.
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

// says tells whether each line that was written is in a file: a weight without a device is "default 200" there.
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
