package server

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/record"
)

// A record of any kind that a newer keeper has written is refused by its path.
func TestCheckRecords(t *testing.T) {
	for _, kind := range []string{"sandboxes", "containers", "execs"} {
		for version, want := range map[int]error{recordFormat: nil, recordFormat + 1: fault.Precondition} {
			state := t.TempDir()
			path := filepath.Join(state, "keeper", kind, "a.json")
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := record.Write(path, version, struct{}{}); err != nil {
				t.Fatal(err)
			}
			if err := CheckRecords(state); !errors.Is(err, want) || err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("%s, version %d: %v", kind, version, err)
			}
		}
	}
}
