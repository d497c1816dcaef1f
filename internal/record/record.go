// Package record stores one JSON file per record and replaces it atomically.
//
// A record is an envelope {"version": N, "data": …} that cat and jq can read. Write replaces the
// file by rename: after a kill, a reader finds either the old record or the new one, complete.
// Nothing is flushed to disk without [Sync]. Records of pods and containers need not survive a
// power cut, because their processes do not; records of images must.
//
// Write creates a temporary file ".<name>.<pid>-<random>" beside the record. [Sweep] removes the
// temporary files of killed processes. The owner of a directory that outlives its records calls
// Sweep at start.
//
// An unreadable record (truncated, not JSON) affects nothing else: [SetAside] renames it to
// "<name>.damaged" and the caller goes on without it. A record of a newer version is not damaged:
// [Newer] finds it before anything is changed.
//
// The package keeps no state. The owner of a path must not write it from two goroutines at once.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

type envelope struct {
	Version int             `json:"version"`
	Data    json.RawMessage `json:"data"`
}

// Option changes the behaviour of Write.
type Option int

// Sync makes Write flush the file to disk before the rename and its directory after it.
const Sync Option = 1

// Write replaces the record at path with v, in format version. The directory must exist. The file's
// mode is 0600.
func Write(path string, version int, v any, opts ...Option) error {
	body, err := encode(version, v)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", path, err)
	}
	return put(path, body, len(opts) > 0 && opts[0] == Sync)
}

// WriteTwice writes the same record to two paths and returns the error of each.
func WriteTwice(path, copyPath string, version int, v any) (err, copyErr error) {
	body, err := encode(version, v)
	if err != nil {
		err = fmt.Errorf("encode record %s: %w", path, err)
		return err, err
	}
	return put(path, body, false), put(copyPath, body, false)
}

// encode writes the envelope by hand, because encoding/json would parse the data again.
func encode(version int, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "{\"version\":%d,\"data\":%s}\n", version, data), nil
}

func put(path string, body []byte, durable bool) error {
	if err := replace(path, body, durable); err != nil {
		return fmt.Errorf("write record %s: %w", path, err)
	}
	return nil
}

// replace uses system calls directly: os.File needs five more for each file, to find out that it
// cannot be polled.
func replace(path string, body []byte, durable bool) (err error) {
	tmp, fd, err := create(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			unix.Unlink(tmp)
		}
	}()
	err = writeAll(fd, body)
	if err == nil && durable {
		err = retry(func() error { return unix.Fsync(fd) })
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: tmp, Err: err}
	}
	if err := retry(func() error { return unix.Rename(tmp, path) }); err != nil {
		return &os.LinkError{Op: "rename", Old: tmp, New: path, Err: err}
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

// create makes the temporary file that will replace the record at path and opens it for writing.
func create(path string) (tmp string, fd int, err error) {
	prefix := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+strconv.Itoa(os.Getpid())+"-")
	const attempts = 10000 // as os.CreateTemp
	for range attempts {
		tmp = prefix + strconv.FormatUint(uint64(rand.Uint32()), 10)
		err = retry(func() error {
			fd, err = unix.Open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
			return err
		})
		if err == nil {
			return tmp, fd, nil
		}
		if !errors.Is(err, unix.EEXIST) {
			break
		}
	}
	return "", -1, &os.PathError{Op: "open", Path: tmp, Err: err}
}

func writeAll(fd int, body []byte) error {
	for len(body) > 0 {
		n, err := unix.Write(fd, body)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			body = body[n:]
		}
	}
	return nil
}

// retry repeats a system call that a signal interrupted, which some network file systems allow.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Sweep removes the temporary files of killed writers from dir. Files of living processes stay: a
// daemon that is handing over to this one still writes. A missing directory is not an error.
func Sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Warn("temporary files of records cannot be removed", "dir", dir, "err", err)
	}
	for _, e := range entries {
		if pid := writerOf(e.Name()); pid > 0 && (pid == os.Getpid() || !lives(pid)) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				slog.Warn("a temporary file of a record cannot be removed", "err", err)
			}
		}
	}
}

// writerOf returns the pid in the name of a temporary file made by create, or 0 for any other file.
func writerOf(name string) int {
	before, _, found := strings.Cut(name[strings.LastIndexByte(name, '.')+1:], "-")
	if !found || !strings.HasPrefix(name, ".") {
		return 0
	}
	pid, err := strconv.Atoi(before)
	if err != nil {
		return 0
	}
	return pid
}

func lives(pid int) bool {
	err := unix.Kill(pid, 0)
	return err == nil || err == unix.EPERM
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Read decodes the record at path into v. The error is of kind NotFound if there is no such file,
// of kind Precondition if a newer version of Kuri wrote it, and of kind Corrupt if the file is not
// a record with a version from 1 to newest.
func Read(path string, newest int, v any) error {
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "record %s: %w", path, err)
	}
	if err != nil {
		return fmt.Errorf("read record %s: %w", path, err)
	}
	var e envelope
	if err := json.Unmarshal(body, &e); err != nil {
		return fault.New(fault.Corrupt, "record %s is not a JSON record: %w", path, err)
	}
	if e.Version > newest {
		return newer(path, e.Version, newest)
	}
	if e.Version < 1 {
		return fault.New(fault.Corrupt, "record %s has format version %d, this version of Kuri reads 1 to %d", path,
			e.Version, newest)
	}
	if err := json.Unmarshal(e.Data, v); err != nil {
		return fault.New(fault.Corrupt, "record %s: %w", path, err)
	}
	return nil
}

// newer returns the error for a record written by a newer version of Kuri.
func newer(path string, version, newest int) error {
	return fault.New(fault.Precondition,
		"record %s has format version %d and was written by a newer version of Kuri; this one reads 1 to %d: "+
			"start the newer version again, which goes on with what runs; nothing was changed", path, version, newest)
}

// Newer returns an error of kind Precondition if a record below dir that matches a pattern
// (path.Match) has a version above newest. It reads only the beginning of most records and changes
// nothing.
func Newer(newest int, dir string, patterns ...string) error {
	for _, pattern := range patterns {
		names, err := fs.Glob(os.DirFS(dir), pattern)
		if err != nil {
			return err
		}
		for _, name := range names {
			path := filepath.Join(dir, name)
			if version := versionOf(path); version > newest {
				return newer(path, version, newest)
			}
		}
	}
	return nil
}

// versionOf returns the same as Version. It reads only the first bytes of a record made by Write,
// where the version comes first.
func versionOf(path string) int {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	var head [32]byte
	n, _ := io.ReadFull(f, head[:])
	var version int
	if found, _ := fmt.Sscanf(string(head[:n]), `{"version":%d,`, &version); found == 1 {
		return version
	}
	return Version(path)
}

// Version returns the format version of the record at path, or 0 if it has no readable version.
func Version(path string) int {
	var e envelope
	body, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(body, &e) != nil {
		return 0
	}
	return e.Version
}

// SetAside renames the record at path to path + ".damaged", where it does no harm and can be
// inspected. It replaces an earlier file of that name.
func SetAside(path string) error {
	aside := path + ".damaged"
	if os.Rename(path, aside) == nil {
		return nil
	}
	if err := os.RemoveAll(aside); err != nil { // one of the two is a directory
		return err
	}
	return os.Rename(path, aside)
}
