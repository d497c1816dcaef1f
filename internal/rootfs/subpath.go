package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/fault"
)

// SubPath returns the real path of a file or directory of an image, relative to the image's root.
// Symbolic links are followed within the image. lowerdirs are the image's layers, topmost first. A
// missing path is an error of kind NotFound.
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
