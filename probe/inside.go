package probe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideLimit is the time limit of the child: loading a module may take a second or two.
const insideLimit = 30 * time.Second

// errSlow is the error for a child that exceeded insideLimit. It is a fact about the load of the
// node, not about its kernel.
var errSlow = errors.New("the node is too busy to tell: try again later")

// holdArgument makes Inside wait for the end of its input, to keep a user namespace alive.
const holdArgument = "hold"

// runInside starts the child in new namespaces, with a temporary directory on the filesystem of the
// root, and returns its results.
func (m *machine) runInside(ctx context.Context) (map[string]string, error) {
	if len(m.Child) == 0 {
		return nil, errors.New("this program has no child for it")
	}
	dir, err := os.MkdirTemp(m.existing(m.Root), ".kuri-check-")
	if err != nil && !m.root { // most likely another filesystem, but better than nothing
		dir, err = os.MkdirTemp("", "kuri-check-")
	}
	if err != nil {
		return nil, err
	}
	defer removeAll(dir)
	m.tryDir = filepath.Dir(dir)
	ctx, cancel := context.WithTimeout(ctx, insideLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.Child[0], append(m.Child[1:len(m.Child):len(m.Child)], dir)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
	}
	if !m.root {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // Pdeathsig is bound to the thread
	defer runtime.UnlockOSThread()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("%w: %w", errSlow, ctx.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("%w %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	found := map[string]string{}
	if err := json.Unmarshal(out, &found); err != nil {
		return nil, fmt.Errorf("decode the results of the child: %w", err)
	}
	return found, nil
}

// removeAll removes a directory of ours. The kernel makes an overlay's work directory with mode 0,
// which only root can enter.
func removeAll(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(path, 0o700) // before it is read
		}
		return nil
	})
	os.RemoveAll(dir)
}

// Inside runs the probes that change namespaces, in those in which [Run] has started this process,
// and writes the results. dir is an empty directory.
func Inside(dir string, in io.Reader, out io.Writer) error {
	if dir == holdArgument {
		_, err := io.Copy(io.Discard, in)
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	tries := map[string]func(string) error{
		"namespaces": func(string) error { return unix.Sethostname([]byte("kuri-check")) },
		"overlay":    tryOverlay, "move_mount": tryMoveMount, "mounts": tryMounts,
		"bridge": tryBridge, "nftables": tryNftables, "seccomp": trySeccomp,
	}
	if os.Getuid() == 0 && !inUserNamespace() {
		tries["mapped"] = tryMapped
	}
	found := map[string]string{}
	for name, try := range tries {
		sub := filepath.Join(dir, name)
		err := os.Mkdir(sub, 0o755)
		if err == nil {
			err = try(sub)
		}
		if found[name] = ""; err != nil {
			found[name] = strings.ReplaceAll(err.Error(), sub, filepath.Dir(dir))
		}
	}
	return json.NewEncoder(out).Encode(found)
}

func inUserNamespace() bool {
	body, err := os.ReadFile("/proc/self/uid_map")
	return err != nil || strings.Join(strings.Fields(string(body)), " ") != "0 0 4294967295"
}

func makeDirs(dir string, names ...string) (err error) {
	for _, name := range names {
		err = errors.Join(err, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	return err
}

// tryOverlay mounts an overlay with two layers and removes a file of a lower one.
func tryOverlay(dir string) error {
	if err := makeDirs(dir, "a", "b", "upper", "work", "merged"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "a", "file"), []byte("a"), 0o644); err != nil {
		return err
	}
	return mountOverlay(dir, filepath.Join(dir, "a"), filepath.Join(dir, "b"))
}

func mountOverlay(dir, a, b string) error {
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%s:%s,upperdir=%s/upper,workdir=%s/work", b, a, dir, dir)
	if inUserNamespace() {
		options += ",userxattr"
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount an overlay in %s: %w", dir, err)
	}
	defer unix.Unmount(merged, unix.MNT_DETACH)
	if err := os.Remove(filepath.Join(merged, "file")); err != nil {
		return fmt.Errorf("remove a file of a lower layer: %w", err)
	}
	return nil
}

// tryMapped mounts layers with mapped ids, and an overlay of them. This needs Linux 5.19 and
// support by the filesystem.
func tryMapped(dir string) error {
	if err := makeDirs(dir, "a", "b", "ma", "mb", "upper", "work", "merged"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "a", "file"), []byte("a"), 0o644); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1 << 16}}
	args := append(os.Args[1:len(os.Args)-1:len(os.Args)-1], holdArgument)
	hold := exec.Command(self, args...)
	hold.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids,
		Pdeathsig: unix.SIGKILL}
	end, err := hold.StdinPipe()
	if err != nil {
		return err
	}
	if err := hold.Start(); err != nil {
		return fmt.Errorf("make a user namespace: %w", err)
	}
	defer hold.Wait()
	defer end.Close()
	user, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", hold.Process.Pid))
	if err != nil {
		return err
	}
	defer user.Close()
	for from, to := range map[string]string{"a": "ma", "b": "mb"} {
		if err := cloneMount(filepath.Join(dir, from), filepath.Join(dir, to), user); err != nil {
			return err
		}
	}
	return mountOverlay(dir, filepath.Join(dir, "ma"), filepath.Join(dir, "mb"))
}

// cloneMount mounts a directory at another one, with the ids of a user namespace unless user is
// nil.
func cloneMount(from, to string, user *os.File) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(fd)
	if user != nil {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH,
			&unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(user.Fd())}); err != nil {
			return fmt.Errorf("map the ids of a mount of %s: %w", from, err)
		}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	return nil
}

func tryMoveMount(dir string) error {
	if err := makeDirs(dir, "from", "to"); err != nil {
		return err
	}
	return cloneMount(filepath.Join(dir, "from"), filepath.Join(dir, "to"), nil)
}

// tryMounts mounts the filesystems that every container has in addition to /proc and /sys.
func tryMounts(dir string) error {
	for kind, options := range map[string]string{"tmpfs": "size=64k",
		"devpts": "newinstance,ptmxmode=0666", "mqueue": ""} {
		at := filepath.Join(dir, kind)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(kind, at, kind, 0, options); err != nil {
			return fmt.Errorf("mount %s: %w", kind, err)
		}
	}
	return nil
}

// tryBridge creates the devices of the built-in network: a bridge with a veth pair.
func tryBridge(string) error {
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "check0"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		return fmt.Errorf("make a bridge: %w", err)
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "check1", MasterIndex: bridge.Index}, PeerName: "check2"}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make a pair of links (veth): %w", err)
	}
	return nil
}

// tryNftables creates a masquerading rule, as in the built-in network.
func tryNftables(string) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	table := conn.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "kuri-check"})
	chain := conn.AddChain(&nftables.Chain{
		Name: "nat", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityNATSource,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Masq{}}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make an nftables rule that masquerades: %w", err)
	}
	return nil
}

// trySeccomp installs a filter in a thread that fails getpgid with a distinct error, and calls
// getpgid.
func trySeccomp(string) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its filter
		result <- filtered()
	}()
	return <-result
}

func filtered() error {
	const number, marker = 0, 1234 // offset of nr in struct seccomp_data; an unused errno
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_GETPGID, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | marker},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	f := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0,
		uintptr(unsafe.Pointer(&f))); errno != 0 {
		return fmt.Errorf("set a seccomp filter: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_GETPGID, 0, 0, 0); errno != marker {
		return fmt.Errorf("a seccomp filter was taken and does nothing (%v)", errno)
	}
	return nil
}
