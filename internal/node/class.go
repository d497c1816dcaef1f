package node

import (
	"log/slog"
	"os"
	"path/filepath"

	"github.com/intel/goresctrl/pkg/blockio"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
)

// RDT lists the RDT classes of this node: the groups below resctrl, as they are now. It is nil where none is mounted.
func RDT() []string { return rdt("/sys/fs/resctrl") }

func rdt(root string) []string {
	if !exists(filepath.Join(root, "schemata")) {
		return nil
	}
	classes := []string{}
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		if exists(filepath.Join(root, e.Name(), "schemata")) { // "info" and the groups of monitoring have none
			classes = append(classes, e.Name())
		}
	}
	return classes
}

// BlockIO reads a file of block I/O classes, as goresctrl and the other runtimes have it, and finds the devices that it
// means. Devices that are not there are left out, and the log says so. An error is of kind Invalid.
func BlockIO(path string) (map[string]*specs.LinuxBlockIO, error) {
	blockio.SetLogger(slog.Default())
	// The library keeps what it has read; nobody else asks it.
	if err := blockio.SetConfigFromFile(path, false); err != nil {
		return nil, fault.As(fault.Invalid, err)
	}
	classes := make(map[string]*specs.LinuxBlockIO)
	for _, name := range blockio.GetClasses() {
		class, err := blockio.OciLinuxBlockIO(name)
		if err != nil {
			return nil, fault.New(fault.Invalid, "%s: %w", path, err)
		}
		classes[name] = class
	}
	return classes, nil
}
