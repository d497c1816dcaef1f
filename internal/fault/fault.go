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

// Kind is a class of errors that callers can tell apart. It is an error itself, so that
// errors.Is(err, fault.NotFound) works.
type Kind string

// The kinds, each with its gRPC code.
const (
	NotFound         Kind = "not found"              // the object does not exist: codes.NotFound
	Exists           Kind = "exists already"         // the name is taken: codes.AlreadyExists
	Invalid          Kind = "invalid"                // the request is wrong, no retry helps: codes.InvalidArgument
	Precondition     Kind = "precondition not met"   // wrong state for this request: codes.FailedPrecondition
	Unavailable      Kind = "unavailable"            // no answer; a retry may work: codes.Unavailable
	Exhausted        Kind = "resources exhausted"    // disk, memory, addresses, a limit: codes.ResourceExhausted
	Unimplemented    Kind = "not implemented"        // not supported by this Kuri or kernel: codes.Unimplemented
	PermissionDenied Kind = "permission denied"      // by a registry or the node's policy: codes.PermissionDenied
	Unauthenticated  Kind = "credentials refused"    // by a registry: codes.Unauthenticated
	Deadline         Kind = "time limit passed"      // set by the request: codes.DeadlineExceeded
	Incomplete       Kind = "done in part"           // the rest could not be done: codes.Aborted
	Unstartable      Kind = "cannot be started"      // due to its program, mounts or limits: codes.InvalidArgument
	Corrupt          Kind = "content does not match" // its digest or its format: codes.DataLoss
)

// Error makes Kind an error.
func (k Kind) Error() string { return string(k) }

type fault struct {
	kind Kind
	err  error
}

func (f *fault) Error() string { return f.err.Error() }

// Unwrap exposes the cause and the kind to errors.Is and errors.As.
func (f *fault) Unwrap() []error { return []error{f.err, f.kind} }

// New returns an error of kind k. The message is formatted as by fmt.Errorf, including %w.
func New(k Kind, format string, args ...any) error {
	return &fault{kind: k, err: fmt.Errorf(format, args...)}
}

// As assigns kind k to err. An error that already has a kind keeps it. nil stays nil.
func As(k Kind, err error) error {
	if err == nil || Of(err) != "" {
		return err
	}
	return &fault{kind: k, err: err}
}

// Of returns the kind of err: the outermost one in its chain, or "" if it has no kind.
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

// OfErrno returns the kind of a kernel error that is about the node and not about the request. It
// returns "" for any other error. It is used where an error without a kind leaves the process.
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

// Hint returns advice for a kernel error whose own text does not say whose limit was reached, or
// "".
func Hint(err error) string {
	switch {
	case errors.Is(err, syscall.EMFILE):
		return fmt.Sprintf(" (%s has as many files open as it may: raise LimitNOFILE of its service)",
			filepath.Base(os.Args[0]))
	case errors.Is(err, syscall.ENFILE):
		return " (this node has as many files open as it may: raise the sysctl fs.file-max)"
	case errors.Is(err, syscall.EIO):
		return " (the device or file system failed: see the kernel's log)"
	case errors.Is(err, syscall.EROFS):
		return " (the kernel makes a file system read-only when its device fails: see its log, then mount it " +
			"writable again)"
	}
	return ""
}

// Contained runs fn and returns a panic in it as an error (see [Panicked]). Deferred calls of fn
// have run by then.
func Contained(fn func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(p)
		}
	}()
	return fn()
}

// Panicked returns the error for a recovered panic with value p, and logs the stack. One request
// fails, with an explanation for its caller; the others go on.
func Panicked(p any) error {
	slog.Error("a bug in Kuri, please report it", "panic", p, "stack", string(debug.Stack()))
	return fmt.Errorf("a bug in Kuri, please report it with what its log says: panic: %v", p)
}
