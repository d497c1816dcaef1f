package network

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kuri-cri/kuri/internal/record"
)

// WriteRecord writes a record. Its directory was made when the network was opened; if it was removed
// since, it is made again, so that pods can still be attached.
func WriteRecord(path string, version int, v any) error {
	err := record.Write(path, version, v)
	if errors.Is(err, fs.ErrNotExist) && os.MkdirAll(filepath.Dir(path), 0o711) == nil {
		err = record.Write(path, version, v)
	}
	return err
}
