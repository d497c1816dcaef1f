package pod

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/metric"
)

// openFiles has the number of files that the processes of a container have open, and their limit.
type openFiles struct {
	processes *metric.Processes
	files     cgroup.Value // soft limit of the first process
}

// readOpen counts the files and sockets that the processes of a container have open.
func (p *Pods) readOpen(r *ContainerRecord) *openFiles {
	o := &openFiles{}
	dir, err := p.Driver.Dir(r.CgroupsPath)
	if err != nil {
		return o
	}
	pids, err := p.Cgroups.Group(dir).Procs()
	p.warnOfSample("list the processes of "+r.name(), err)
	if err == nil {
		o.processes = &metric.Processes{Count: uint64(len(pids))}
		for _, pid := range pids {
			countOpen(pid, o.processes)
		}
	}
	var limit unix.Rlimit
	if r.Pid > 0 && unix.Prlimit(r.Pid, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		o.files = cgroup.Value{N: limit.Cur, OK: true}
	}
	return o
}

// countOpen adds the descriptors of a process. A process that has ended has none.
func countOpen(pid int, to *metric.Processes) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var buf [8192]byte
	var link [8]byte
	for {
		n, err := unix.ReadDirent(fd, buf[:])
		if err != nil || n <= 0 {
			return
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			to.Files++
			if n, err := unix.Readlinkat(fd, name, link[:]); err == nil && string(link[:n]) == "socket:[" {
				to.Sockets++
			}
		}
	}
}

// devices names block devices. It is safe for concurrent use.
type devices struct {
	mu    sync.Mutex
	names map[[2]uint32]string
	roots map[string]string // source of the filesystem of a directory
}

// name returns the path of a block device, "" if the kernel reports none.
func (d *devices) name(major, minor uint32) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := [2]uint32{major, minor}
	name, known := d.names[key]
	if !known {
		body, _ := os.ReadFile("/sys/dev/block/" + strconv.Itoa(int(major)) + ":" + strconv.Itoa(int(minor)) + "/uevent")
		for line := range bytes.Lines(body) {
			if rest, ok := bytes.CutPrefix(line, []byte("DEVNAME=")); ok {
				name = "/dev/" + string(bytes.TrimSpace(rest))
			}
		}
		if d.names == nil {
			d.names = make(map[[2]uint32]string)
		}
		d.names[key] = name
	}
	return name
}

// of returns the source of the filesystem of a directory, from the mount table.
func (d *devices) of(dir string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if source, known := d.roots[dir]; known {
		return source
	}
	source := ""
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil {
		body, _ := os.ReadFile("/proc/self/mountinfo")
		source = sourceOf(string(body), strconv.Itoa(int(unix.Major(st.Dev)))+":"+strconv.Itoa(int(unix.Minor(st.Dev))))
	}
	if d.roots == nil {
		d.roots = make(map[string]string)
	}
	d.roots[dir] = source
	return source
}

// sourceOf returns the source of the filesystem with the given device number, such as "8:1", in /proc/self/mountinfo.
func sourceOf(mountinfo, device string) string {
	for line := range strings.Lines(mountinfo) {
		left, right, ok := strings.Cut(line, " - ")
		fields, tail := strings.Fields(left), strings.Fields(right)
		if ok && len(fields) > 2 && len(tail) > 1 && fields[2] == device {
			return tail[1]
		}
	}
	return ""
}

// writableDisk returns the filesystem of a writable layer, and the disk usage of the layer.
func (p *Pods) writableDisk(c *Container) *metric.Disk {
	r := c.Record()
	root := p.writableFilesystem(r.ContainerRoot)
	d := &metric.Disk{Device: p.devices.of(root)}
	var st unix.Statfs_t
	if unix.Statfs(root, &st) == nil {
		d.Limit = cgroup.Value{N: st.Blocks * uint64(st.Bsize), OK: true}
		d.InodesTotal = cgroup.Value{N: st.Files, OK: true}
		d.InodesFree = cgroup.Value{N: st.Ffree, OK: true}
	}
	if r.Writable != nil && r.Writable.Bytes > 0 {
		d.Limit = cgroup.Value{N: r.Writable.Bytes, OK: true}
	}
	if used := c.usage.known(); !used.at.IsZero() {
		d.Used = cgroup.Value{N: used.bytes, OK: true}
	}
	return d
}
