package fault

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
)

// Kind is a class of error that callers tell apart. It is itself an error, so that errors.Is(err, fault.NotFound) reads
// as it should.
type Kind string

// The kinds, each with the gRPC code that the server gives it.
const (
	NotFound         Kind = "not found"              // what was named does not exist: codes.NotFound
	Exists           Kind = "exists already"         // the name is taken by something else: codes.AlreadyExists
	Invalid          Kind = "invalid"                // the request itself is wrong and no retry mends it: codes.InvalidArgument
	Precondition     Kind = "precondition not met"   // the request is right, the state is not: codes.FailedPrecondition
	Unavailable      Kind = "unavailable"            // something outside did not answer; a retry may work: codes.Unavailable
	Exhausted        Kind = "resources exhausted"    // disk, memory, addresses, or a bound of ours: codes.ResourceExhausted
	Unimplemented    Kind = "not implemented"        // this version of Kuri, or this kernel, has it not: codes.Unimplemented
	PermissionDenied Kind = "permission denied"      // refused by a registry or by the node's policy: codes.PermissionDenied
	Unauthenticated  Kind = "credentials refused"    // a registry wants other credentials: codes.Unauthenticated
	Deadline         Kind = "time limit passed"      // a limit that the request itself set has passed: codes.DeadlineExceeded
	Incomplete       Kind = "done in part"           // the rest could not be done: codes.Aborted
	Unstartable      Kind = "cannot be started"      // a container whose own program, mounts or limits keep it from running: codes.InvalidArgument
	Corrupt          Kind = "content does not match" // content differs from its digest or its format: codes.DataLoss
)

// Error makes a Kind usable as the target of errors.Is.
func (k Kind) Error() string { return string(k) }

type fault struct {
	kind Kind
	err  error
}

func (f *fault) Error() string { return f.err.Error() }

// Unwrap gives both the cause and the kind to errors.Is and errors.As.
func (f *fault) Unwrap() []error { return []error{f.err, f.kind} }

// New returns an error of kind k whose text is format and args, with the meaning of %w as in fmt.Errorf.
func New(k Kind, format string, args ...any) error {
	return &fault{kind: k, err: fmt.Errorf(format, args...)}
}

// As gives err the kind k. An error that has a kind already keeps it, nil stays nil.
func As(k Kind, err error) error {
	if err == nil || Of(err) != "" {
		return err
	}
	return &fault{kind: k, err: err}
}

// Of returns the kind of err: the outermost one in its chain, or "" when it has none.
func Of(err error) Kind {
	var f *fault
	if errors.As(err, &f) {
		return f.kind
	}
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	return ""
}

// OfErrno returns the kind of an error of the kernel that says something about this node and nothing about the request, ""
// for any other. It is asked where an error without a kind leaves the process.
func OfErrno(err error) Kind {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return ""
	}
	switch errno {
	case syscall.EMFILE, syscall.ENFILE, syscall.ENOSPC, syscall.EDQUOT, syscall.ENOMEM:
		return Exhausted
	case syscall.EIO:
		return Unavailable
	case syscall.EROFS:
		return Precondition
	}
	return ""
}

// Hint says what to do about an error of the kernel where its own words do not say whose limit it is, "" for any other.
func Hint(err error) string {
	switch {
	case errors.Is(err, syscall.EMFILE):
		return fmt.Sprintf(" (%s has as many files open as it may: raise LimitNOFILE of its service)", filepath.Base(os.Args[0]))
	case errors.Is(err, syscall.ENFILE):
		return " (this node has as many files open as it may: raise the sysctl fs.file-max)"
	case errors.Is(err, syscall.EIO):
		return " (the device or file system failed: see the kernel's log)"
	case errors.Is(err, syscall.EROFS):
		return " (the kernel makes a file system read-only when its device fails: see its log, then mount it writable again)"
	}
	return ""
}

// Contained runs fn, and makes an error of a panic in it: [Panicked]. What fn has deferred has run then.
func Contained(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(p)
		}
	}()
	return fn()
}

// Panicked is the error for a panic with the value p, to be called where that is recovered: one request fails, with a word
// to its caller, and the others go on. Where it came from is in the log.
func Panicked(p any) error {
	slog.Error("a bug in Kuri, please report it", "panic", p, "stack", string(debug.Stack()))
	return fmt.Errorf("a bug in Kuri, please report it with what its log says: panic: %v", p)
}
