// Package record keeps one JSON file per record, replaced atomically.
//
// A record is an envelope {"version": N, "data": …} that cat and jq can read. Write replaces the file by rename, so a
// reader, or a daemon that starts after a kill, sees the old record or the new one whole. Nothing is flushed to the disk
// unless [Sync] is asked for: pods and containers need not outlive a power cut, for neither do their processes; images
// must.
//
// Write makes the new file beside the old one, as ".<name>.<pid>-<random>". What a killed process has left of that, [Sweep]
// removes: the owner of a directory that outlives its records calls it when it starts.
//
// A record that cannot be read (cut off, not JSON) costs only itself: [SetAside] renames it to "<name>.damaged" and the caller
// goes on without it. One of a newer version is not damaged: [Newer] finds it before anything is changed.
//
// The package keeps no state; two writers of one path must be kept apart by its owner.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
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

// Option changes how Write works.
type Option int

// Sync makes Write flush the file and its directory to the disk before and after the rename.
const Sync Option = 1

// Write replaces the record at path with v in format version. The directory must exist; the file's mode is 0600.
func Write(path string, version int, v any, opts ...Option) error {
	body, err := encode(version, v)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", path, err)
	}
	return put(path, body, len(opts) > 0 && opts[0] == Sync)
}

// WriteTwice is Write for two paths, and returns the error of each.
func WriteTwice(path, copyPath string, version int, v any) (err, copyErr error) {
	body, err := encode(version, v)
	if err != nil {
		err = fmt.Errorf("encode record %s: %w", path, err)
		return err, err
	}
	return put(path, body, false), put(copyPath, body, false)
}

// encode writes the envelope by hand: encoding/json would read the data once more.
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

func replace(path string, body []byte, durable bool) (err error) {
	f, err := create(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(body)
	if err == nil && durable {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	if durable {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

// create makes the file that is to replace the record at path.
func create(path string) (*os.File, error) {
	return os.CreateTemp(filepath.Dir(path), fmt.Sprintf(".%s.%d-*", filepath.Base(path), os.Getpid()))
}

// Sweep removes the files in dir that writers were killed over. Those of a process that lives are left alone: a daemon that
// hands over to this one still writes. A directory that is not there has none.
func Sweep(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Warn("what killed writers have left of records cannot be removed", "dir", dir, "err", err)
	}
	for _, e := range entries {
		if pid := writerOf(e.Name()); pid > 0 && (pid == os.Getpid() || !lives(pid)) {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				slog.Warn("what a killed writer has left of a record cannot be removed", "err", err)
			}
		}
	}
}

// writerOf returns the process that has made a file of create's, 0 for any other file.
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

// Read decodes the record at path into v. The error is of kind NotFound when there is no file, of kind Precondition when a newer
// version of Kuri wrote it, and of kind Corrupt when the file is not a record of a version from 1 to newest.
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
		return fault.New(fault.Corrupt, "record %s has format version %d, this version of Kuri reads 1 to %d", path, e.Version, newest)
	}
	if err := json.Unmarshal(e.Data, v); err != nil {
		return fault.New(fault.Corrupt, "record %s: %w", path, err)
	}
	return nil
}

// newer is the error of a record that a newer version of Kuri wrote.
func newer(path string, version, newest int) error {
	return fault.New(fault.Precondition, "record %s has format version %d and was written by a newer version of Kuri; this one reads 1 to %d: "+
		"start the newer version again, which goes on with what runs; nothing was changed", path, version, newest)
}

// Newer returns an error of kind Precondition when a record below dir that matches a pattern (path.Match) has a version above
// newest. It reads no more of each than that takes, and changes nothing.
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

// versionOf is Version for a record that Write has written, whose version comes first, and for any other.
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

// Version returns the format version of the record at path, 0 when it has none that can be read.
func Version(path string) int {
	var e envelope
	body, err := os.ReadFile(path)
	if err != nil || json.Unmarshal(body, &e) != nil {
		return 0
	}
	return e.Version
}

// SetAside renames the record at path to path + ".damaged", where it disturbs nobody and can be looked at. Of several that
// are set aside in turn the last one stays.
func SetAside(path string) error {
	aside := path + ".damaged"
	if os.Rename(path, aside) == nil {
		return nil
	}
	if err := os.RemoveAll(aside); err != nil { // one of them is a directory
		return err
	}
	return os.Rename(path, aside)
}
