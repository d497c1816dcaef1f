package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/fault"
)

// SubPath returns the path of a file or directory of an image, relative to the image's root and free of symbolic links:
// those on the way are followed within the image. Lowerdirs are the image's layers, top first. A path that is not there
// is an error of kind NotFound.
func SubPath(lowerdirs []string, path string) (string, error) {
	way, _, err := stack(lowerdirs).walk(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.NotFound, "the image has no %q", path)
	}
	if err != nil {
		return "", fmt.Errorf("find %q in the image: %w", path, err)
	}
	return filepath.Join(way...), nil
}
