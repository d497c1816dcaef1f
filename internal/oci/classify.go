package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/seal"
)

// ofNode are the errors caused by the node and not by the container. libcontainer passes them on as
// text.
var ofNode = []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOSPC, unix.EDQUOT, unix.ENOMEM, unix.EIO}

// classifyCreate gives an error of a container's start the kind Unstartable, unless it is the
// node's or the kernel has refused a limit.
func classifyCreate(err error) error { return fault.As(fault.Unstartable, classify(err)) }

// ofLimit are the errors of a limit that the kernel refuses because of its value, or because the
// pod's cgroup does not permit it. The cgroup library checks CPU shares itself.
var ofLimit = []string{
	unix.EINVAL.Error(), unix.ERANGE.Error(), unix.EOVERFLOW.Error(), unix.EACCES.Error(), "allowed cpu-shares",
}

// classify gives an error its kind if that is certain: that of its errno for the node's (no
// descriptors, full disk), Unstartable if the kernel has refused a limit, Precondition if a limit
// could not be set for another reason. The container's init and libcontainer report errors as text.
func classify(err error) error {
	text := strings.ToLower(err.Error()) // C and Go differ in the case of errno texts
	switch {
	case strings.Contains(text, "unable to set memory limit"): // lower than a start needs
		return err
	case strings.Contains(text, "setting cgroup config"), strings.Contains(text, "apply cgroup configuration: failed to write"):
		if slices.ContainsFunc(ofLimit, func(sign string) bool { return strings.Contains(text, sign) }) {
			return fault.New(fault.Unstartable, "the kernel refuses a limit: %w", err)
		}
		return fault.As(fault.Precondition, err)
	case strings.Contains(text, unix.EAGAIN.Error()): // of fork(2)
		return fault.New(fault.Exhausted, "%w (a limit of processes: of the pod's cgroup, of the keeper's, or kernel.pid_max)", err)
	}
	for _, errno := range ofNode {
		switch {
		case errors.Is(err, errno):
			return fault.As(fault.OfErrno(errno), err)
		case strings.Contains(text, errno.Error()): // as text only, without an errno
			return fault.New(fault.OfErrno(errno), "%w%s", err, fault.Hint(errno))
		}
	}
	return err
}

// classifyExec gives an error of an exec the kind Invalid if the request is wrong: no such program,
// not executable, no such directory.
func classifyExec(err error) error {
	err = classify(err)
	for _, sign := range []string{"executable file not found", "exec: \"", "no such file or directory", "permission denied", "exec format error", "not a directory"} {
		if strings.Contains(err.Error(), sign) {
			return fault.As(fault.Invalid, err)
		}
	}
	return err
}

// explain adds the cause of a failed start that libcontainer cannot report: its init exits without
// an error message if it may start no thread.
func explain(dir string, err error) error {
	if !strings.Contains(err.Error(), "procReady not received") {
		return err
	}
	for ; strings.HasPrefix(dir, "/sys/fs/cgroup/"); dir = filepath.Dir(dir) {
		if most, tight := tightPids(dir); tight {
			return fmt.Errorf("%w: cgroup %s may have %d processes, too few for a start: %w", err, dir, most, unix.EAGAIN)
		}
	}
	return err
}

// startThreads bounds the number of processes and threads that a container's start needs.
const startThreads = 16

// tightPids reports whether a cgroup has room for fewer processes than a start needs, and returns
// its limit.
func tightPids(dir string) (most int, tight bool) {
	number := func(name string) (int, error) {
		body, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return 0, err
		}
		return strconv.Atoi(strings.TrimSpace(string(body))) // "max", no limit, is not a number
	}
	most, err := number("pids.max")
	if err != nil {
		return 0, false
	}
	now, err := number("pids.current")
	return most, err == nil && most-now < startThreads
}

// unable reports whether libcontainer may succeed instead: this program cannot be sealed, or the
// kernel lacks a feature (clone3 into a cgroup: Linux 5.7, setns with a pidfd: 5.8).
func unable(err error) bool {
	var failed *startError
	if !errors.As(err, &failed) {
		return errors.Is(err, seal.ErrUnsealed)
	}
	switch failed.errno {
	case unix.EINVAL, unix.ENOSYS, unix.E2BIG:
		return failed.step == stepFork || failed.step == stepJoin
	}
	return false
}

// classify gives an error its kind and message: Invalid if the request is wrong. The caller adds
// the container.
func (x *Executor) classify(program string, err error) error {
	var failed *startError
	switch {
	case !errors.As(err, &failed) || fault.OfErrno(failed.errno) != "": // the node's
		return err
	case failed.step == stepFork && failed.errno == unix.EAGAIN:
		return fault.New(fault.Exhausted, "it has as many processes as it may have (pids limit)")
	case failed.step == stepConsole:
		return fault.As(fault.Precondition, err)
	case failed.step == stepCwd && (failed.errno == unix.ENOENT || failed.errno == unix.ENOTDIR || failed.errno == unix.ESTALE):
		return fault.New(fault.Precondition, "exec: %q: the container's working directory %s is gone, make it anew (%w)", program, x.cwd, failed.errno)
	case failed.step == stepCwd && failed.errno == unix.EXDEV:
		return fault.New(fault.Invalid, "exec: %q: the container's working directory %s is not below its root", program, x.cwd)
	case failed.step == stepCwd:
		return fault.New(fault.Invalid, "exec: %q: enter the container's working directory %s: %w", program, x.cwd, failed.errno)
	case failed.step == stepSearch && failed.errno == unix.ENOENT:
		return fault.New(fault.Invalid, "exec: %q: executable file not found in the container", program)
	case failed.step == stepSearch || failed.step == stepExec:
		return fault.New(fault.Invalid, "exec: %q: %w", program, err)
	}
	return err
}

// classifyCopier returns an error of kind Unimplemented if the container does not allow the
// copier's program.
func (x *Executor) classifyCopier(err error) error {
	var failed *startError
	if unable(err) || errors.As(err, &failed) && (failed.step == stepSearch || failed.step == stepExec) {
		return fault.New(fault.Unimplemented, "no copier for container %s: %w", x.id, err)
	}
	return x.classify("the copier", err)
}
