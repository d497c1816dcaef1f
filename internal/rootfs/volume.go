package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// maxVolumes limits the VOLUMEs of an image. Real images have a handful.
const maxVolumes = 500

// Volumes returns the directories that an image's VOLUMEs require in a container: absolute, free of
// links, each once, sorted by name. They may be missing in the image, whose layers are lowerdirs,
// topmost first.
//
// A volume at or below one of the container's mounts is left out, because the mount takes
// precedence. A volume where Kuri mounts something itself, or where no directory is possible, is
// left out too. notes give the reasons, except for the files in /etc, which nobody misses.
func Volumes(lowerdirs []string, volumes map[string]struct{}, mounts []*runtime.Mount) (dirs, notes []string) {
	if len(volumes) == 0 {
		return nil, nil
	}
	image := stack(lowerdirs)
	var taken []string // by mounts: the requested path, and where the image's links lead
	for _, m := range mounts {
		asked := rooted(m.GetContainerPath())
		taken = append(taken, asked)
		if resolved, err := image.place(asked); err == nil {
			taken = append(taken, resolved)
		}
	}
	taken = append(taken, "/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
	names := slices.Sorted(maps.Keys(volumes))
	if len(names) > maxVolumes {
		notes = append(notes, fmt.Sprintf("the image has %d VOLUMEs; those after the first %d are ignored",
			len(names), maxVolumes))
		names = names[:maxVolumes]
	}
	for _, name := range names {
		asked := rooted(name)
		if belowAny(asked, taken) {
			continue
		}
		dir, err := image.volume(name)
		if err != nil {
			notes = append(notes, fmt.Sprintf("the image's VOLUME %.100q is ignored: %v", name, err))
			continue
		}
		if !belowAny(dir, taken) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs, notes
}

// volume returns the real path of a VOLUME in the image, or an error if it cannot be a directory
// there.
func (s stack) volume(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", errors.New("its name has a NUL byte")
	}
	dir, err := s.place(rooted(name))
	switch {
	case err != nil:
		return "", err
	case dir == "/":
		return "", errors.New("it is the whole root filesystem")
	case belowAny(dir, []string{"/proc", "/sys", "/dev"}):
		return "", errors.New("it is in a file system of the kernel")
	}
	return dir, nil
}

// place resolves the image's links in a directory path as far as it exists; the missing rest is
// taken as directories to be created. A non-directory is an error.
func (s stack) place(name string) (string, error) {
	for range maxLinks {
		way, left, file, err := s.reach(name)
		if err != nil && !(errors.Is(err, fs.ErrNotExist) && left != nil) {
			if errors.Is(err, fs.ErrNotExist) {
				return "", errors.New("the image has a file on the way to it")
			}
			return "", err
		}
		if file != "" {
			return "", errors.New("the image has a file there")
		}
		name = path.Join("/", path.Join(way...), path.Join(left...))
		if !slices.Contains(left, "..") {
			return name, nil
		}
	}
	return "", fault.New(fault.Invalid, "%s of the image: too many symbolic links", name)
}

// rooted returns the clean absolute form of a path in a container.
func rooted(p string) string { return path.Clean("/" + p) }

// belowAny reports whether p is one of dirs or below one of them.
func belowAny(p string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return p == d || strings.HasPrefix(p, d+"/") })
}
