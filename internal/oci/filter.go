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

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/seal"
)

// filter is a seccomp filter in the kernel's form: the program that libcontainer loads for a
// profile, simplified, and its flags. It is immutable and shared by all containers with the profile.
type filter struct {
	flags     uint32
	loadEarly uint32 // 1 or 0: early
	program   []byte // instructions: struct sock_filter of the kernel
}

const instructionSize = unix.SizeofSockFilter

// filters are the filters in use, by the hash of their profile. An entry is removed when no
// executor uses the filter and it is not among the recent ones. Those are kept because a start
// needs its filter only briefly, and the next start usually needs the same one.
type filters struct {
	mu     sync.Mutex // guards both; held while a filter is compiled, so that each profile is compiled once
	known  map[[sha256.Size]byte]weak.Pointer[filter]
	recent []recentFilter // the last requested ones, the newest last
}

// recentFilter is a filter and the profile for which it was requested last.
type recentFilter struct {
	*filter
	profile *configs.Seccomp
}

// recentMax is the number of filters that are kept for future starts. The containers of a node have
// one or two profiles. A filter takes about 3 KiB.
const recentMax = 4

// keep makes a filter the newest recent one. The caller holds mu.
func (f *filters) keep(one *filter, profile *configs.Seccomp) {
	f.recent = append(slices.DeleteFunc(f.recent,
		func(o recentFilter) bool { return o.filter == one }), recentFilter{one, profile})
	if len(f.recent) > recentMax {
		f.recent = slices.Delete(f.recent, 0, 1)
	}
}

// of returns the filter of a profile, and compiles it if necessary. The profile must not be changed
// later.
func (f *filters) of(profile *configs.Seccomp) (*filter, error) {
	if known := f.latest(profile); known != nil {
		return known, nil
	}
	encoded, err := json.Marshal(profile)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(encoded)
	f.mu.Lock()
	defer f.mu.Unlock()
	if known := f.known[key].Value(); known != nil {
		f.keep(known, profile)
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
	f.keep(made, profile)
	return made, nil
}

// latest returns the recent filter of this very profile, which need not be encoded again; nil if
// there is none.
func (f *filters) latest(profile *configs.Seccomp) *filter {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, recent := range f.recent {
		if recent.profile == profile {
			f.keep(recent.filter, profile)
			return recent.filter
		}
	}
	return nil
}

// forget removes the entry of an unreferenced filter, unless the filter has been compiled again.
func (f *filters) forget(key [sha256.Size]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.known[key].Value() == nil {
		delete(f.known, key)
	}
}

// filterLimit bounds the compilation of a filter, which takes 25 ms on an idle machine.
var filterLimit = 10 * time.Second // constant but in tests

// makeFilter compiles the filter of a profile in another process of this program; see [Filter].
func makeFilter(profile []byte) (*filter, error) {
	ctx, cancel := context.WithTimeout(context.Background(), filterLimit)
	defer cancel()
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, "/proc/self/exe", filterMode)
	if err := seal.Program(cmd); err != nil {
		return nil, fmt.Errorf("make the seccomp filter: %w", err)
	}
	cmd.Args[0], cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = "kuri-filter", "/", bytes.NewReader(profile), &out,
		&complaint
	cmd.Env = []string{"GOGC=off", "GOMAXPROCS=2", "GODEBUG=asyncpreemptoff=1"} // see interceptor
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, fault.New(fault.Unavailable, "make the seccomp filter: it took longer than %s, the node is too busy", filterLimit)
		}
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

// filterMode is the first argument of this program in a process that compiles a filter.
const filterMode = "seccomp-filter"

// Filter compiles the seccomp filter of the profile at standard input and writes it to standard
// output. It never returns. A program that links [Embedded] must call it, on its first thread, if
// its first argument is "seccomp-filter".
//
// It lets libcontainer load the filter as in a container, and takes the arguments for the kernel
// from the system call: the program, including its return values for calls that are newer than the
// profile, and the flags. Then it simplifies the program; see [simplify].
func Filter() {
	if err := writeFilter(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func writeFilter(in io.Reader, out io.Writer) error {
	f, err := compile(in)
	if err != nil {
		return err
	}
	if _, err := out.Write(binary.NativeEndian.AppendUint32(nil, f.flags)); err != nil {
		return err
	}
	_, err = out.Write(simplify(f.program))
	return err
}

// compile returns the filter that libcontainer loads for an encoded profile.
func compile(in io.Reader) (*filter, error) {
	var profile configs.Seccomp
	if err := json.NewDecoder(in).Decode(&profile); err != nil {
		return nil, fmt.Errorf("read the profile: %w", err)
	}
	runtime.LockOSThread() // permanently: only this thread cannot load filters
	i, err := intercept()
	if err != nil {
		return nil, err
	}
	var loaded *filter
	caught := make(chan error, 1)
	go func() {
		var err error
		loaded, err = i.catch()
		caught <- err
	}()
	if _, err := seccomp.InitSeccomp(&profile); !errors.Is(err, errCaught) {
		return nil, fmt.Errorf("libcontainer did not come to load the filter: %w", err) // so there is nothing to catch
	}
	if err := <-caught; err != nil {
		return nil, err
	}
	return loaded, nil
}

// errCaught is the error of an intercepted load. No load fails with it otherwise.
const errCaught = unix.EOWNERDEAD

// interceptor is the listener of this thread's seccomp filter: the kernel passes it the thread's
// loads of filters. A thread that waits for the answer is in a state unknown to Go's runtime. So
// the listener needs another processor, and nothing may stop the thread, above all not the garbage
// collection. makeFilter sets the environment for that.
type interceptor int

// intercept installs that filter on this thread. It intercepts only complete loads: libseccomp
// tests flags without a program, and Go's runtime names memory with prctl.
func intercept() (interceptor, error) {
	const nr, args = 0, 16                                             // offsets in struct seccomp_data
	half := 4 * (binary.NativeEndian.Uint32([]byte{0, 0, 0, 1}) & 0xf) // of an argument's low half; 4 if big-endian
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
		equal(unix.SECCOMP_SET_MODE_FILTER, 5, 9), // check the program's address, or allow
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

// notification and answer are the kernel's struct seccomp_notif and seccomp_notif_resp.
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

// catch receives a load, reads its filter, and makes it fail with errCaught. A signal to the thread
// cancels the call before the answer, and then the thread repeats it.
func (i interceptor) catch() (*filter, error) {
	for {
		var n notification // the kernel requires zeros
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

// read reads the program from this process's memory, at the address in the call. seccomp(2) has
// flags and prctl(2) does not; the address is the third argument of both.
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
