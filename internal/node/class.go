package node

import (
	"log/slog"
	"os"
	"path/filepath"

	"github.com/intel/goresctrl/pkg/blockio"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
)

// RDT returns the current RDT classes of this node, the groups in resctrl. It returns nil if resctrl is not mounted.
func RDT() []string { return rdt("/sys/fs/resctrl") }

func rdt(root string) []string {
	if !exists(filepath.Join(root, "schemata")) {
		return nil
	}
	classes := []string{}
	entries, _ := os.ReadDir(root)
	for _, e := range entries {
		if exists(filepath.Join(root, e.Name(), "schemata")) { // "info" and monitoring groups have no schemata
			classes = append(classes, e.Name())
		}
	}
	return classes
}

// BlockIO reads a file of block I/O classes in goresctrl's format, which the other runtimes use
// too, and resolves its devices. Missing devices are skipped and logged. The error is of kind
// Invalid.
func BlockIO(path string) (map[string]*specs.LinuxBlockIO, error) {
	blockio.SetLogger(slog.Default())
	// The library keeps the configuration in a global, which only this function uses.
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
