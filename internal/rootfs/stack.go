package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Limits for one file of an image.
const (
	maxFile  = 16 << 20 // bytes; an /etc/passwd exported from a directory service has a few million
	maxLinks = 40       // symbolic links on the path, as in the kernel
	maxPath  = 4096     // length of a path in bytes, as in the kernel
)

// stack is the lowerdirs of an image, topmost first.
type stack []string

// read returns the content of a file as the merged layers show it. It never leaves the stack,
// whatever the links say. The error is fs.ErrNotExist if there is no such file, otherwise of kind
// Invalid.
func (s stack) read(name string) ([]byte, error) {
	host, err := s.find(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(host, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "%s of the image is not a regular file", name)
	}
	body, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	if len(body) > maxFile {
		return nil, fault.New(fault.Invalid, "%s of the image is larger than the limit of %d bytes", name, maxFile)
	}
	return body, nil
}

// find returns the host path of a file in the layer that has it. A directory is an error of kind
// Invalid.
func (s stack) find(name string) (string, error) {
	_, file, err := s.walk(name)
	if err != nil {
		return "", err
	}
	if file == "" {
		return "", fault.New(fault.Invalid, "%s of the image is a directory", name)
	}
	return file, nil
}

// walk resolves name from the root of the stack, following links. It returns the components of the
// real path and, for anything but a directory, the host path of the file in the layer that has it.
func (s stack) walk(name string) (way []string, file string, err error) {
	way, _, file, err = s.reach(name)
	return way, file, err
}

// reach is like walk. For a name that does not exist (fs.ErrNotExist) it also returns the existing
// part of the path and the remaining components.
func (s stack) reach(name string) (way, left []string, file string, err error) {
	trail := [][]string{s} // for each directory on the path, its merged directories
	todo := strings.Split(name, "/")
	for links := 0; len(todo) > 0; {
		element := todo[0]
		todo = todo[1:]
		switch element {
		case "", ".":
			continue
		case "..":
			trail = trail[:max(1, len(trail)-1)]
			way = way[:len(trail)-1]
			continue
		}
		dirs, file, err := lookup(trail[len(trail)-1], element)
		if errors.Is(err, fs.ErrNotExist) {
			return way, append([]string{element}, todo...), "", err
		}
		if err != nil {
			return nil, nil, "", err
		}
		if len(dirs) > 0 {
			trail, way = append(trail, dirs), append(way, element)
			continue
		}
		target, err := os.Readlink(file)
		if errors.Is(err, unix.EINVAL) { // not a link: a file
			if len(todo) > 0 {
				return nil, nil, "", fs.ErrNotExist
			}
			return append(way, element), nil, file, nil
		}
		if err != nil {
			return nil, nil, "", err
		}
		if links++; links > maxLinks || len(target) > maxPath {
			return nil, nil, "", fault.New(fault.Invalid, "%s of the image: too many symbolic links", name)
		}
		if filepath.IsAbs(target) {
			trail, way = trail[:1], nil
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	return way, nil, "", nil
}

// lookup finds one name in a merged directory by the rules of overlayfs. The topmost layer that has
// the name decides. A directory is merged with those below it until a layer has an opaque directory
// or a non-directory there. A character device 0:0 is a whiteout and hides the layers below.
func lookup(dirs []string, name string) (found []string, file string, err error) {
	for _, d := range dirs {
		p := filepath.Join(d, name)
		var st unix.Stat_t
		err := unix.Lstat(p, &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, "", &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			whiteout := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
			if len(found) == 0 && !whiteout {
				return nil, p, nil
			}
			break
		}
		found = append(found, p)
		if opaque(p) {
			break
		}
	}
	if len(found) == 0 {
		return nil, "", fs.ErrNotExist
	}
	return found, "", nil
}

func opaque(dir string) bool {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
	return err == nil && n == 1 && value[0] == 'y'
}
