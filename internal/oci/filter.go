package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"
	"weak"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"
)

// filter is a seccomp filter as the kernel takes it: the very program and flags that libcontainer loads for a profile.
// Nothing changes it, so all containers with the profile have one.
type filter struct {
	flags     uint32
	loadEarly uint32 // 1 or 0: early
	program   []byte // struct sock_filter of the kernel, instruction by instruction
}

const instructionSize = unix.SizeofSockFilter

// filters are those that are in use, by the hash of their profile. An entry goes with the last executor that has it, and when
// it is none of the recent ones: a start has its filter no longer than it takes, and the next one wants the same.
type filters struct {
	mu     sync.Mutex // guards both; held while a filter is made, so that a profile's is made once
	known  map[[sha256.Size]byte]weak.Pointer[filter]
	recent []*filter // the last ones that were asked for, the newest last
}

// recentMax is how many filters are kept for starts to come. A node's containers have one or two profiles; a filter is some
// ten KiB.
const recentMax = 4

// keep makes a filter the newest of the recent ones. The caller holds mu.
func (f *filters) keep(one *filter) {
	f.recent = append(slices.DeleteFunc(f.recent, func(o *filter) bool { return o == one }), one)
	if len(f.recent) > recentMax {
		f.recent = slices.Delete(f.recent, 0, 1)
	}
}

// of returns the filter of a profile.
func (f *filters) of(profile *configs.Seccomp) (*filter, error) {
	encoded, err := json.Marshal(profile)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(encoded)
	f.mu.Lock()
	defer f.mu.Unlock()
	if known := f.known[key].Value(); known != nil {
		f.keep(known)
		return known, nil
	}
	made, err := makeFilter(encoded)
	if err != nil {
		return nil, err
	}
	if f.known == nil {
		f.known = make(map[[sha256.Size]byte]weak.Pointer[filter])
	}
	f.known[key] = weak.Make(made)
	runtime.AddCleanup(made, f.forget, key)
	f.keep(made)
	return made, nil
}

// forget drops the entry of a filter that nobody has any more, unless it has been made again.
func (f *filters) forget(key [sha256.Size]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known[key].Value() == nil {
		delete(f.known, key)
	}
}

// filterLimit bounds the making of a filter, which takes 25 ms on an idle machine.
const filterLimit = 10 * time.Second

// makeFilter has this program, started once more, make the filter of a profile: see [Filter].
func makeFilter(profile []byte) (*filter, error) {
	ctx, cancel := context.WithTimeout(context.Background(), filterLimit)
	defer cancel()
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", filterMode)
	cmd.Args[0], cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "kuri-filter", "/", bytes.NewReader(profile), &out, &complaint
	cmd.Env = []string{"GOGC=off", "GOMAXPROCS=2", "GODEBUG=asyncpreemptoff=1"} // see interceptor
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("make the seccomp filter: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	b := out.Bytes()
	if len(b) <= 4 || (len(b)-4)%instructionSize != 0 {
		return nil, fmt.Errorf("make the seccomp filter: %d bytes are not a filter", len(b))
	}
	f := &filter{flags: binary.NativeEndian.Uint32(b), program: slices.Clone(b[4:])}
	if f.early() {
		f.loadEarly = 1
	}
	return f, nil
}

// filterMode is the first argument of this program when it is to make a filter.
const filterMode = "seccomp-filter"

// Filter is the program of a process that makes the seccomp filter of the profile at its standard input, and never
// returns. The program that links [Embedded] calls it, in its first thread, when its first argument is "seccomp-filter".
//
// It lets libcontainer load the filter, as it does in a container, and takes from the system call what the kernel was to
// be given: the program with its answers to calls that are newer than the profile, and the flags.
func Filter() {
	if err := writeFilter(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func writeFilter(in io.Reader, out io.Writer) error {
	var profile configs.Seccomp
	if err := json.NewDecoder(in).Decode(&profile); err != nil {
		return fmt.Errorf("read the profile: %w", err)
	}
	runtime.LockOSThread() // for good: it is the thread that cannot load filters
	i, err := intercept()
	if err != nil {
		return err
	}
	var loaded *filter
	caught := make(chan error, 1)
	go func() {
		var err error
		loaded, err = i.catch()
		caught <- err
	}()
	if _, err := seccomp.InitSeccomp(&profile); !errors.Is(err, errCaught) {
		return fmt.Errorf("libcontainer did not come to load the filter: %w", err) // and nothing is to be caught
	}
	if err := <-caught; err != nil {
		return err
	}
	if _, err := out.Write(binary.NativeEndian.AppendUint32(nil, loaded.flags)); err != nil {
		return err
	}
	_, err = out.Write(loaded.program)
	return err
}

// errCaught is what a load that was intercepted fails with. A load has no such error of its own.
const errCaught = unix.EOWNERDEAD

// interceptor is the listener of the seccomp filter that this thread has: the kernel hands it the thread's loads of
// filters. While the thread waits for the answer it is in no state that Go's runtime knows of, so the other end needs
// a processor beside the thread's, and nothing may want the thread to stop, the garbage collection least: makeFilter's
// environment.
type interceptor int

// intercept gives this thread the filter. It asks for nothing but whole loads: libseccomp tries flags without a program,
// and Go's runtime names memory by prctl.
func intercept() (interceptor, error) {
	const nr, args = 0, 16                                             // offsets in struct seccomp_data
	half := 4 * (binary.NativeEndian.Uint32([]byte{0, 0, 0, 1}) & 0xf) // where an argument's low half is: after the high one?
	low := func(arg uint32) uint32 { return args + 8*arg + half }
	high := func(arg uint32) uint32 { return args + 8*arg + (4 - half) }
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	code := []unix.SockFilter{
		load(nr),
		equal(unix.SYS_SECCOMP, 0, 2),
		load(low(0)),
		equal(unix.SECCOMP_SET_MODE_FILTER, 5, 9), // to the program's address, or let it pass
		equal(unix.SYS_PRCTL, 0, 8),
		load(low(0)),
		equal(unix.PR_SET_SECCOMP, 0, 6),
		load(low(1)),
		equal(unix.SECCOMP_MODE_FILTER, 0, 4),
		load(low(2)),
		equal(0, 0, 3),
		load(high(2)),
		equal(0, 0, 1),
		ret(unix.SECCOMP_RET_ALLOW),
		ret(unix.SECCOMP_RET_USER_NOTIF),
	}
	program := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER,
		uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(code)
	if errno != 0 {
		return -1, fmt.Errorf("intercept the loading of filters: %w", errno)
	}
	return interceptor(fd), nil
}

// notification and answer are struct seccomp_notif and seccomp_notif_resp of the kernel.
type notification struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	at         uint64
	args       [6]uint64
}

type answer struct {
	id    uint64
	value int64
	errno int32
	flags uint32
}

// catch receives a load, reads what it was to load, and has it fail with errCaught. A signal to the thread takes its call
// back before the answer, and then it comes again.
func (i interceptor) catch() (*filter, error) {
	for {
		var n notification // which the kernel wants to be zero
		err := i.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receive the loading of a filter: %w", err)
		}
		loaded, err := n.read()
		a := answer{id: n.id, errno: -int32(errCaught)}
		serr := i.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a))
		if errors.Is(serr, unix.ENOENT) {
			continue
		}
		if err == nil && serr != nil {
			err = fmt.Errorf("answer the loading of a filter: %w", serr)
		}
		return loaded, err
	}
}

func (i interceptor) ioctl(request uintptr, value unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(i), request, uintptr(value)); errno != 0 {
		return errno
	}
	return nil
}

// read reads the program from this process's memory by the address in the call. Seccomp has flags, prctl has none; the
// address is the third argument of both.
func (n *notification) read() (*filter, error) {
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	var program unix.SockFprog
	header := make([]byte, unsafe.Sizeof(program))
	if _, err := mem.ReadAt(header, int64(n.args[2])); err != nil {
		return nil, fmt.Errorf("read the program's address: %w", err)
	}
	loaded := &filter{program: make([]byte, instructionSize*int(binary.NativeEndian.Uint16(header)))}
	address := binary.NativeEndian.Uint64(header[unsafe.Offsetof(program.Filter):])
	if _, err := mem.ReadAt(loaded.program, int64(address)); err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	if n.nr == unix.SYS_SECCOMP {
		loaded.flags = uint32(n.args[1])
	}
	return loaded, nil
}
