package pod

import (
	"errors"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestDevicesOfAUserNamespaceHaveThePathsOfTheNode(t *testing.T) {
	null := specs.LinuxDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}
	if err := samePaths([]specs.LinuxDevice{null}); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/dev/zero", "/dev/absent"} {
		other := null
		other.Path = path
		if err := samePaths([]specs.LinuxDevice{null, other}); !errors.Is(err, fault.Unimplemented) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
