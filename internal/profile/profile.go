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

// All are the profiles that there can be, as net/http/pprof names them.
var All = []string{"allocs", "goroutine", "heap", "profile", "threadcreate"}

// Request says which profile is wanted.
type Request struct {
	Name    string // one of All
	Seconds int    // over which "profile" is taken, and memory is sampled where it is not always; 1 to SecondsMax
	Debug   int    // of "goroutine": 2 for the stacks as text
}

// SecondsMax bounds the time over which a profile is taken.
const SecondsMax = 600

// Check returns why r cannot be had, an error of kind Invalid.
func (r Request) Check() error {
	if !slices.Contains(All, r.Name) {
		return fault.New(fault.Invalid, "there is no profile %q here; there are %s", r.Name, strings.Join(All, ", "))
	}
	if r.Seconds < 1 || r.Seconds > SecondsMax {
		return fault.New(fault.Invalid, "seconds: %d is not from 1 to %d", r.Seconds, SecondsMax)
	}
	if r.Debug < 0 || r.Debug > 2 {
		return fault.New(fault.Invalid, "debug: %d is not 0, 1 or 2", r.Debug)
	}
	return nil
}

// taking is held while a profile is taken over a time: Go has one of each at once.
var taking sync.Mutex

// slack is how long the reader of a profile may take beyond the time over which it is taken.
const slack = 30 * time.Second

// Begin opens the pipe at path, /proc/PID/fd/N, and begins to take a profile. finish writes it, when the time is over, and
// closes the pipe. Error kinds: Invalid, Unavailable (another is being taken), Unimplemented (a
// lean program, which has it not).
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
		return nil, fault.New(fault.Unavailable, "another profile of this process is being taken; ask again when that is done")
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

// openPipe opens the writing end of a pipe of another process. The error is of kind Invalid.
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

// lookEvery is how often the writer of a profile looks whether anybody reads it still.
const lookEvery = 250 * time.Millisecond

// whileRead calls gone when nobody has the other end of the pipe any more. It ends with ctx.
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

// Receive copies to out the profile that ask has another process write: ask is given the path of the pipe, and returns when
// the other has opened it, or later. When ctx ends nobody reads any more, and so the other process ends the profile.
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
		read.Close() // who writes is told that nobody reads any more
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

// descriptor returns the number of f's, which stays as it is: Fd would make it blocking.
func descriptor(f *os.File) (n uintptr, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = conn.Control(func(fd uintptr) { n = fd })
	return n, err
}
