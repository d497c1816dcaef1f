package node

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestRDTClassesAreTheGroupsOfResctrl(t *testing.T) {
	root := t.TempDir()
	if got := rdt(root); got != nil {
		t.Errorf("without resctrl: %q", got)
	}
	for _, file := range []string{"schemata", "gold/schemata", "silver/schemata", "info/L3/cbm_mask", "mon_groups/x/tasks",
		"cpus"} {
		path := filepath.Join(root, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if got := rdt(root); !slices.Equal(got, []string{"gold", "silver"}) {
		t.Errorf("classes %q", got)
	}
}

func TestBlockIOClasses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "blockio.yaml")
	for _, bad := range []string{"Clases: {}", "Classes:\n  a:\n  - Weight: heavy\n"} {
		if err := os.WriteFile(file, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if classes, err := BlockIO(file); !errors.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, %v", bad, classes, err)
		}
	}
	if err := os.WriteFile(file,
		[]byte("Classes:\n  a:\n  - Weight: \"80\"\n  none: []\n  gone:\n  - Devices: [/dev/no-such]\n    ThrottleReadBps: 1M\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	classes, err := BlockIO(file)
	if err != nil || len(classes) != 3 || len(classes["gone"].ThrottleReadBpsDevice) != 0 || classes["a"].Weight == nil ||
		*classes["a"].Weight != 80 || classes["none"].Weight != nil {
		t.Errorf("%v, %v", classes, err)
	}
	if _, err := BlockIO(file + ".absent"); !errors.Is(err, fault.Invalid) {
		t.Errorf("a file that is not there: %v", err)
	}
}
