package server_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// initReport prints the attributes and the environment of a container's first process that do not
// differ between containers.
const initReport = `
id
grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid|Sig[BIC]|Umask|Speculation|Cpus_allowed|CoreDump)' /proc/self/status
cat /proc/self/limits /proc/self/oom_score_adj /proc/self/personality
sed 's/[0-9a-f]\{64\}/ID/' /proc/self/cgroup
pwd; umask; tty; hostname; env | sort
ls -l /proc/self/fd 2>/dev/null | sed -n 's/.* \([0-9]* -> .*\)/\1/; s/\[[0-9]*\]//; s/[0-9]*.fd$/fd/; s,-> /null,-> /dev/null,; / -> /p'
stat -L -c '%F %u %g %a' /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2
exec 2>&1 # the log has lines of stdout and stderr in any order
echo mounts; cat /proc/self/mountinfo
echo devices; ls -lnR /dev | sed 's/ [A-Z][a-z][a-z] [ 0-9][0-9] [0-9:]* / /; s/^total.*//'
stat -c '%n %F %a %u %g' / /proc /sys /dev /tmp /etc /new /new/dir /new/file /link /work /work/deep 2>&1
for f in /sys/fs/cgroup/*/devices.list /sys/fs/cgroup/*/cpu.shares /sys/fs/cgroup/*/memory.limit_in_bytes /sys/fs/cgroup/*/pids.max /sys/fs/cgroup/cpu.weight /sys/fs/cgroup/memory.max; do
	test -r $f && echo $f && cat $f
done
id=$(grep -o '[0-9a-f]\{64\}' /proc/self/cgroup | head -n 1)
awk -v name=_ses.$id 'index($9, name) == 1 {print $4, $5, $6, $7, $8}' /proc/keys
set -- $(cut -d' ' -f5,6 /proc/$$/stat); echo session $(test $1 = $2 -a $2 = $$ && echo leader)
echo x >/new/file; echo x >/proc/sys/kernel/domainname; head -c 10 /proc/kcore
cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; echo x >/new/dir/it && ls -ln /new/dir; rm -f /new/dir/it
for d in /new/dir /a /etc/hosts /proc/sys; do mount -o remount,bind,rw,suid,dev,exec $d && echo changed $d; done
grep -E ' /new/dir | /a | /etc/hosts | /proc/sys ' /proc/self/mountinfo | cut -d' ' -f5,6
true
`

// normal removes from a report what differs between containers, and allowed differences between the
// two ways.
func normal(report string) string {
	var out []string
	in := ""
	for line := range strings.Lines(report) {
		line = strings.TrimSpace(line)
		if line == "mounts" || line == "devices" {
			in = line
		}
		if f := strings.Fields(line); in == "mounts" && len(f) > 9 {
			line = normalMount(f)
		}
		if line == "" || strings.HasPrefix(line, "lrwxrwxrwx 1 0 0 11 core") { // see normalMount
			continue
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n")
}

var idPattern = regexp.MustCompile(`[0-9a-f]{64}`)

// normalMount returns a line of mountinfo (proc_pid_mountinfo(5)) without ids, devices and peer
// group numbers.
func normalMount(f []string) string {
	dash := slices.Index(f, "-")
	var peers []string
	for _, p := range f[6:dash] {
		kind, _, _ := strings.Cut(p, ":")
		peers = append(peers, kind)
	}
	root, super := idPattern.ReplaceAllString(f[3], "ID"), f[dash+3]
	if f[dash+1] == "overlay" {
		super = "its layers"
	}
	return strings.Join([]string{root, f[4], f[5], fmt.Sprint(peers), f[dash+1], super}, " ")
}

// TestInitConformance creates the same container by our own init and by libcontainer's. The
// container must see no difference.
func TestInitConformance(t *testing.T) {
	n := newNode(t)
	src := t.TempDir()
	n.must(os.MkdirAll(filepath.Join(src, "dir", "below"), 0o755))
	n.must(os.WriteFile(filepath.Join(src, "file"), []byte("volume\n"), 0o644))
	n.must(unix.Mount("below", filepath.Join(src, "dir", "below"), "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "size=1m"))
	t.Cleanup(func() { unix.Unmount(filepath.Join(src, "dir", "below"), unix.MNT_DETACH) })
	n.makeDev(filepath.Join(src, "dev"))
	bind := func(source, target string, options ...string) func(*job) {
		return func(j *job) {
			j.spec.Mounts = append(j.spec.Mounts, specs.Mount{Type: "bind", Source: filepath.Join(src, source),
				Destination: target, Options: options})
		}
	}
	fs := func(kind, target string, options ...string) func(*job) {
		return func(j *job) {
			j.spec.Mounts = append(j.spec.Mounts, specs.Mount{Type: kind, Source: kind, Destination: target, Options: options})
		}
	}
	all := func(changes ...func(*job)) func(*job) {
		return func(j *job) {
			for _, c := range changes {
				c(j)
			}
		}
	}
	kubelet := all(
		fs("mqueue", "/dev/mqueue", "nosuid", "noexec", "nodev"),
		fs("sysfs", "/sys", "nosuid", "noexec", "nodev", "ro"),
		fs("cgroup", "/sys/fs/cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
		bind("file", "/etc/hosts", "rbind", "rprivate", "rw"),
		bind("dir", "/new/dir", "rbind", "rprivate", "ro"),
		func(j *job) {
			j.spec.Linux.MaskedPaths = []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi",
				"/sys/firmware", "/proc/none", "/proc/../proc/kcore"}
			j.spec.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
				"/proc/none"}
			shares, limit := uint64(256), int64(64<<20)
			j.spec.Linux.Resources = &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
				CPU:     &specs.LinuxCPU{Shares: &shares}, Memory: &specs.LinuxMemory{Limit: &limit},
			}
		})
	umask, oom := uint32(0o077), 321
	user := func(j *job) {
		p := j.spec.Process
		p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8, 1001}, Umask: &umask}
		p.Cwd, p.OOMScoreAdj = "/work/deep", &oom
		p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"},
			{Type: "RLIMIT_MEMLOCK", Soft: 1 << 20, Hard: 1 << 21}}
		p.Env = append(p.Env, "A=1", "A=2", "EMPTY=", "HOME=")
	}
	gains := func(j *job) {
		caps := []string{"CAP_NET_BIND_SERVICE", "CAP_CHOWN"}
		p := j.spec.Process
		p.NoNewPrivileges = false
		p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps, Inheritable: caps,
			Ambient: caps[:1]}
	}
	without := func(kind specs.LinuxNamespaceType) func(*job) {
		return func(j *job) {
			j.spec.Linux.Namespaces = slices.DeleteFunc(j.spec.Linux.Namespaces,
				func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
		}
	}
	mode := func(m os.FileMode) *os.FileMode { return &m }
	id := func(n uint32) *uint32 { return &n }
	image := func(name string, make func(path string) error) func(*job) {
		return func(j *job) { n.must(make(filepath.Join(j.Rootfs.Upperdir, name))) }
	}
	link := func(name, target string) func(*job) {
		return image(name, func(path string) error { return os.Symlink(target, path) })
	}
	file := func(name string) func(*job) {
		return image(name, func(path string) error { return os.WriteFile(path, nil, 0o644) })
	}
	directory := func(name string, mode os.FileMode) func(*job) {
		return image(name, func(path string) error { return errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode)) })
	}
	rows := []struct {
		name   string
		box    func(*api.CreateSandboxRequest)
		change func(*job)
	}{
		{"nothing but what every container has", nil, func(*job) {}},
		{"as a kubelet asks", nil, kubelet},
		{"a user", nil, all(kubelet, user)},
		{"a user, privileges to gain", nil, all(kubelet, user, gains)},
		{"all capabilities", nil, func(j *job) { j.spec.Process.Capabilities = nil; j.spec.Process.NoNewPrivileges = false }},
		{"the default filter", nil, all(kubelet, filtered)},
		{"the default filter, a user, privileges to gain", nil, all(kubelet, user, gains, filtered)},
		{"a filter of one's own, privileges to gain", nil, all(kubelet, gains, filtered, ownFilter)},
		{"a read-only root", nil, all(kubelet, func(j *job) { j.spec.Root.Readonly = true })},
		{"the host's processes", nil, all(kubelet, without(specs.PIDNamespace))},
		{"the pod's processes", func(req *api.CreateSandboxRequest) { req.Pid = true }, all(kubelet, user)},
		{"the host's network and IPC", nil, all(kubelet, without(specs.NetworkNamespace), without(specs.IPCNamespace))},
		{"a terminal", nil, all(kubelet, func(j *job) {
			j.Tty, j.spec.Process.Terminal = true, true
			j.spec.Process.ConsoleSize = &specs.Box{Width: 111, Height: 44}
		})},
		{"a terminal of a user", nil, all(kubelet, user, func(j *job) { j.Tty, j.spec.Process.Terminal = true, true })},
		{"standard input", nil, func(j *job) { j.Stdin = true }},
		{"devices", nil, func(j *job) {
			j.spec.Linux.Devices = []specs.LinuxDevice{
				{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: mode(0o606), UID: id(5), GID: id(6)},
				{Path: "/dev/deep/er/zero", Type: "c", Major: 1, Minor: 5, FileMode: mode(0o666)},
				{Path: "/odd/place", Type: "b", Major: 7, Minor: 0, FileMode: mode(0o600)},
			}
		}},
		{"kinds of tmpfs", nil, all(fs("tmpfs", "/tmp", "size=1m", "mode=0700"), fs("tmpfs", "/etc", "ro"),
			fs("tmpfs", "/new/dir", "noexec", "noatime", "rprivate"),
			fs("tmpfs", "/run/x", "strictatime", "nodev", "size=5%"))},
		{"kinds of binds", nil, all(bind("dir", "/a", "bind"), bind("dir", "/b", "rbind", "ro", "nosuid", "nodev", "noexec"),
			bind("dir", "/c", "rbind", "rslave", "noatime"),
			bind("file", "/new/file", "bind", "ro"), bind("dir", "/d", "rbind", "rprivate", "rro", "rnoexec"), bind("dir/below",
				"/e", "rbind", "rw", "exec"), bind("dir", "/f/./g//h/", "rbind", "private"))},
		{"shared propagation", nil, all(func(j *job) { j.spec.Linux.RootfsPropagation = "rshared" },
			bind("dir", "/a", "rbind", "rshared"))},
		{"slave propagation", nil, all(func(j *job) { j.spec.Linux.RootfsPropagation = "rslave" },
			bind("dir", "/a", "rbind", "rslave"))},
		{"a host's /dev", nil, all(func(j *job) {
			j.spec.Mounts = slices.DeleteFunc(j.spec.Mounts,
				func(m specs.Mount) bool { return strings.HasPrefix(m.Destination, "/dev") })
		}, bind("dev", "/dev", "rbind", "rslave"))},
		{"links of the image at mount points", nil, all(link("link", "/etc"), link("etc2", "../../../../etc/deep/../deeper"),
			link("abs", "/tmp"),
			fs("tmpfs", "/link"), bind("file", "/abs/file", "bind"))},
		{"a mount point behind a missing directory", nil, all(directory("there", 0o701), link("via", "missing/../there"),
			fs("tmpfs", "/via"))},
		{"/dev of the image is a link", nil,
			all(image("dev", func(path string) error { return os.Symlink("/tmp/dev", path) }), fs("tmpfs", "/tmp/dev"))},
		// Our own init rejects what libcontainer rejects.
		{"/proc is a link", nil, link("proc", "/tmp")},
		{"/proc is a file", nil, file("proc")},
		{"/sys is a link", nil, all(link("sys", "tmp"), fs("sysfs", "/sys", "ro"))},
		{"a mount point in a file", nil, all(file("plain"), fs("tmpfs", "/plain/x"))},
		{"a bind of a directory onto a file", nil, all(file("plain"), bind("dir", "/plain", "bind"))},
		{"a mount point that is a link to nowhere", nil, all(link("gone", "/nonesuch/x"), bind("dir", "/gone", "bind"))},
		{"a mount point that is a loop", nil, all(link("loop", "loop"), bind("dir", "/loop", "bind"))},
		{"a mount onto the root by a link", nil, all(link("top", "/"), fs("tmpfs", "/top"))},
		{"a mount into /proc by a link", nil, all(link("p", "/proc/sys"), fs("tmpfs", "/p/x"))},
		{"a mount onto /proc by a link", nil, all(link("p", "proc"), bind("dir", "/p", "bind"))},
		{"the working directory is a file", nil, all(file("work"), user)},
		{"the working directory is a link to the root", nil, all(link("work", "/"), user)},
		{"the working directory is what is open", nil, func(j *job) { j.spec.Process.Cwd = "/proc/self/fd/7" }},
		{"a source that is not there", nil, bind("none", "/a", "bind")},
		{"/dev/null is a file", nil, all(kubelet, func(j *job) {
			j.spec.Mounts = slices.DeleteFunc(j.spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev" })
		}, image("dev", func(path string) error { return os.MkdirAll(path, 0o755) }), file("dev/null"))},
	}

	// The same in a user namespace, and cases specific to it. Its root may not enter the
	// directories of some volumes, and cannot clear attributes of the node's mounts.
	ids := []*api.IDMapping{{HostId: 1 << 20, Length: 1 << 16}}
	inUserns := func(req *api.CreateSandboxRequest) { req.UidMappings, req.GidMappings = ids, ids }
	own := func(j *job) {
		n.must(filepath.WalkDir(j.Rootfs.Upperdir, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, 1<<20, 1<<20))
		}))
	}
	mapped := func(j *job) {
		m := &j.spec.Mounts[len(j.spec.Mounts)-1]
		m.UIDMappings = []specs.LinuxIDMapping{{HostID: 1 << 20, Size: 1 << 16}}
		m.GIDMappings = m.UIDMappings
	}
	n.must(os.MkdirAll(filepath.Join(src, "closed", "dir"), 0o755))
	n.must(os.Chmod(filepath.Join(src, "closed"), 0o700))
	readOnly := filepath.Join(src, "dir", "ro")
	n.must(os.MkdirAll(readOnly, 0o755))
	n.must(unix.Mount("ro", readOnly, "tmpfs", unix.MS_NODEV, "size=1m"))
	t.Cleanup(func() { unix.Unmount(readOnly, unix.MNT_DETACH) })
	n.must(unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NODEV, ""))
	powers := func(j *job) { j.spec.Process.Capabilities, j.spec.Process.NoNewPrivileges = nil, false }
	plain := len(rows)
	for _, c := range rows {
		c.name += ", in a user namespace"
		c.change = all(c.change, own)
		if box := c.box; box != nil {
			c.box = func(req *api.CreateSandboxRequest) { box(req); inUserns(req) }
		} else {
			c.box = inUserns
		}
		rows = append(rows, c)
	}
	for _, c := range []struct {
		name   string
		change func(*job)
	}{
		{"a volume with mapped ids", all(bind("dir", "/a", "rbind", "rw"), mapped, powers)},
		{"a read-only one, and one that is a file",
			all(bind("dir", "/a", "rbind", "ro"), mapped, bind("file", "/new/file", "rbind", "rprivate", "rw"), mapped, powers)},
		{"mapped as deep as it goes", all(bind("dir", "/a", "rbind", "ridmap", "rw"), mapped, powers)},
		{"with the pod's mapping, which it does not name", all(bind("dir", "/a", "rbind", "idmap", "rw"), powers)},
		{"a volume in a closed directory", all(bind("closed/dir", "/a", "rbind", "rw"), powers)},
		{"a mapped volume in a closed directory", all(bind("closed/dir", "/a", "rbind", "rw"), mapped, powers)},
		{"a volume of a mount without programs", all(bind("dir/below", "/a", "rbind", "rw"), powers)},
		{"a mapped volume of a mount without programs", all(bind("dir/below", "/a", "rbind", "rw"), mapped, powers)},
		{"a volume that must have programs, of a mount without", all(bind("dir/below", "/a", "rbind", "exec"), powers)},
		{"a mapped volume that must have programs, of a mount without",
			all(bind("dir/below", "/a", "rbind", "exec"), mapped, powers)},
		{"a volume of a read-only mount", all(bind("dir/ro", "/a", "rbind", "ro"), powers)},
		{"a mapped volume of a read-only mount", all(bind("dir/ro", "/a", "rbind", "ro"), mapped, powers)},
		{"a volume to write to, of a read-only mount", all(bind("dir/ro", "/a", "rbind", "rw"), mapped, powers)},
		{"other times", all(bind("dir", "/a", "rbind", "noatime"), powers)},
		{"a filesystem that maps no ids", all(func(j *job) {
			j.spec.Mounts = append(j.spec.Mounts, specs.Mount{Type: "bind", Source: "/proc/sys", Destination: "/a",
				Options: []string{"rbind"}})
		}, mapped)},
		{"kinds of binds that take what is below", all(bind("dir", "/b", "rbind", "ro", "nosuid", "nodev", "noexec"),
			bind("dir", "/c", "rbind", "rslave"),
			bind("dir", "/d", "rbind", "rprivate", "rro", "rnoexec"), bind("file", "/new/file", "bind", "ro"), mapped, powers)},
		{"a device of the node", all(func(j *job) {
			j.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/ptmx", Type: "c", Major: 5, Minor: 2},
				{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11, FileMode: mode(0o600)}}
		}, powers)},
		{"kubelet's, a user with all capabilities", all(kubelet, user, powers)},
	} {
		rows = append(rows, struct {
			name   string
			box    func(*api.CreateSandboxRequest)
			change func(*job)
		}{c.name + ", in a user namespace", inUserns, all(c.change, own)})
	}
	probed, err := n.Probe(t.Context(), t.TempDir(), t.TempDir())
	n.must(err)
	for i, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			if i >= plain && probed.NoUserNamespaces != "" {
				t.Skipf("SKIP: no user namespaces here: %s", probed.NoUserNamespaces)
			}
			var change []func(*api.CreateSandboxRequest)
			if c.box != nil {
				change = append(change, c.box)
			}
			box := n.sandbox(change...)
			var reports, kinds [2]string
			for i, way := range []func(*job){func(*job) {}, byLibcontainer} {
				j := n.job(box, initReport, func(j *job) {
					n.must(os.MkdirAll(filepath.Join(j.Rootfs.Upperdir, "etc"), 0o755))
					n.must(os.WriteFile(filepath.Join(j.Rootfs.Upperdir, "etc/hosts"), nil, 0o644))
				}, c.change, way)
				if _, err := n.Create(t.Context(), j.CreateRequest); err != nil {
					kinds[i] = "refused"
					t.Logf("way %d: %v", i, err)
					continue
				}
				if native := n.native(j); native != (i == 0) {
					t.Errorf("way %d: made by our own init: %v", i, native)
				}
				_, err := n.Start(t.Context(), j.Id)
				n.must(err)
				exit := n.wait(j).Exit
				reports[i] = fmt.Sprintf("exit %d\n%s", exit.Code, normal(n.output(j)))
				n.must(n.Delete(t.Context(), j.Id))
			}
			if kinds[0] != kinds[1] {
				t.Errorf("our own init: %q, libcontainer: %q", kinds[0], kinds[1])
			}
			if reports[0] != reports[1] {
				lines := oneSided(reports[0], reports[1])
				if len(lines) == 0 { // in another order
					lines = differences(reports[0], reports[1])
				}
				t.Errorf("by our own init (-) and by libcontainer (+):\n%s", strings.Join(lines, "\n"))
			}
			n.must(n.RemoveSandbox(t.Context(), box.Id))
		})
	}
}

// makeDev mounts a filesystem with some of a host's devices at dir. Those in the host's own /dev come
// and go.
func (n *node) makeDev(dir string) {
	n.t.Helper()
	n.must(os.Mkdir(dir, 0o755))
	n.must(unix.Mount("dev", dir, "tmpfs", unix.MS_NOSUID, "size=1m,mode=0755"))
	n.must(unix.Mount("", dir, "", unix.MS_SHARED, "")) // so that the propagation of a bind makes a difference
	n.t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	for name, number := range map[string]uint64{"null": unix.Mkdev(1, 3), "zero": unix.Mkdev(1, 5),
		"urandom": unix.Mkdev(1, 9), "tty": unix.Mkdev(5, 0)} {
		path := filepath.Join(dir, name)
		n.must(unix.Mknod(path, unix.S_IFCHR, int(number)))
		n.must(os.Chmod(path, 0o666))
	}
	n.must(os.Mkdir(filepath.Join(dir, "pts"), 0o755))
	n.must(unix.Mount("devpts", filepath.Join(dir, "pts"), "devpts", unix.MS_NOSUID|unix.MS_NOEXEC,
		"newinstance,ptmxmode=0666,mode=0620"))
	n.must(os.Symlink("pts/ptmx", filepath.Join(dir, "ptmx")))
}

// oneSided returns the lines that only one of two reports has, in order.
func oneSided(a, b string) (lines []string) {
	for sign, pair := range map[string][2]string{"-": {a, b}, "+": {b, a}} {
		rest := strings.Split(pair[1], "\n")
		for line := range strings.SplitSeq(pair[0], "\n") {
			if i := slices.Index(rest, line); i >= 0 {
				rest = slices.Delete(rest, i, i+1)
			} else {
				lines = append(lines, sign+" "+line)
			}
		}
	}
	return lines
}

// native reports whether our own init has created a container.
func (n *node) native(j *job) bool {
	_, err := os.Stat(filepath.Join(n.state, "mounts", ".oci", j.Id, "native"))
	return err == nil
}
