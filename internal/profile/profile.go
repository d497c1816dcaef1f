package profile

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// All lists the supported profiles, with the names of net/http/pprof.
var All = []string{"allocs", "goroutine", "heap", "profile", "threadcreate"}

// Request selects a profile.
type Request struct {
	Name    string // one of All
	Seconds int    // duration of a CPU profile, and of memory sampling in a quiet process; 1 to SecondsMax
	Debug   int    // for "goroutine": 2 for stacks as text
}

// SecondsMax bounds Request.Seconds.
const SecondsMax = 600

// Check returns an error of kind Invalid for an invalid request.
func (r Request) Check() error {
	if !slices.Contains(All, r.Name) {
		return fault.New(fault.Invalid, "unknown profile %q; use one of %s", r.Name, strings.Join(All, ", "))
	}
	if r.Seconds < 1 || r.Seconds > SecondsMax {
		return fault.New(fault.Invalid, "seconds: %d is not from 1 to %d", r.Seconds, SecondsMax)
	}
	if r.Debug < 0 || r.Debug > 2 {
		return fault.New(fault.Invalid, "debug: %d is not 0, 1 or 2", r.Debug)
	}
	return nil
}

// taking is held during a profile: the Go runtime takes only one of each kind at a time.
var taking sync.Mutex

// slack is the time that a reader may take beyond Request.Seconds.
const slack = 30 * time.Second

// Begin opens the pipe at path, /proc/PID/fd/N, and starts a profile. finish waits for its end,
// writes it and closes the pipe. Error kinds: Invalid, Unavailable (another profile is being
// taken), Unimplemented (a lean program).
func Begin(r Request, path string) (finish func(context.Context) error, err error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	out, err := openPipe(path)
	if err != nil {
		return nil, err
	}
	out.SetWriteDeadline(time.Now().Add(time.Duration(r.Seconds)*time.Second + slack))
	if !taking.TryLock() {
		out.Close()
		return nil, fault.New(fault.Unavailable, "another profile of this process is being taken; try again later")
	}
	release := func() {
		taking.Unlock()
		out.Close()
	}
	work, err := begin(r, out)
	if err != nil {
		release()
		return nil, err
	}
	return func(ctx context.Context) error {
		defer release()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go whileRead(ctx, out, cancel)
		return work(ctx)
	}, nil
}

// openPipe opens the write end of another process's pipe. The error is of kind Invalid.
func openPipe(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.New(fault.Invalid, "open the pipe for the profile, %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return nil, fault.New(fault.Invalid, "%s is not a pipe for a profile", path)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// lookEvery is the interval at which the writer checks that the pipe still has a reader.
const lookEvery = 250 * time.Millisecond

// whileRead calls gone when the pipe has no reader any more. It ends with ctx.
func whileRead(ctx context.Context, pipe *os.File, gone func()) {
	conn, err := pipe.SyscallConn()
	if err != nil {
		return
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		lost := false
		err := conn.Control(func(fd uintptr) {
			poll := []unix.PollFd{{Fd: int32(fd)}}
			_, err := unix.Poll(poll, 0)
			lost = err == nil && poll[0].Revents&unix.POLLERR != 0
		})
		if lost || err != nil {
			gone()
			return
		}
	}
}

// Receive copies a profile of another process to out. ask passes the path of the pipe to that
// process, and must not return before it has opened the pipe. When ctx ends the pipe loses its
// reader, so the other process stops the profile.
func Receive(ctx context.Context, out io.Writer, r Request, ask func(path string) error) error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	read.SetReadDeadline(time.Now().Add(time.Duration(r.Seconds)*time.Second + slack))
	defer context.AfterFunc(ctx, func() { read.Close() })()
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(out, read)
		read.Close() // the writer sees that the pipe has no reader
		copied <- err
	}()
	fd, err := descriptor(write)
	if err == nil {
		err = ask(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd))
	}
	write.Close()
	if err != nil {
		read.Close()
		<-copied
		return err
	}
	if err := <-copied; err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("receive the profile: %w", err)
	}
	return nil
}

// descriptor returns f's descriptor without changing it: File.Fd would make it blocking.
func descriptor(f *os.File) (n uintptr, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = conn.Control(func(fd uintptr) { n = fd })
	return n, err
}
