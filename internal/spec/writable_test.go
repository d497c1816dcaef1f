package spec

import (
	"errors"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestWritableLayer(t *testing.T) {
	for _, test := range []struct {
		name        string
		annotations map[string]string
		configured  WritableLimits
		want        WritableLimits
		err         string // expected in the error, "" for no error
	}{
		{"nothing", nil, WritableLimits{}, WritableLimits{}, ""},
		{"configured", nil, WritableLimits{1 << 20, 100}, WritableLimits{1 << 20, 100}, ""},
		{"annotated", map[string]string{"kuri-cri.io/writable-layer": "bytes=1Gi, inodes=5000"}, WritableLimits{},
			WritableLimits{1 << 30, 5000}, ""},
		{"lowered", map[string]string{"kuri-cri.io/writable-layer": "bytes=512Ki"}, WritableLimits{1 << 20, 100},
			WritableLimits{512 << 10, 100}, ""},
		{"of one container", map[string]string{"kuri-cri.io/writable-layer": "bytes=1Mi",
			"writable-layer.kuri-cri.io/main": "bytes=2Ti"}, WritableLimits{}, WritableLimits{2 << 40, 0}, ""},
		{"of another container", map[string]string{"writable-layer.kuri-cri.io/other": "nonsense"}, WritableLimits{},
			WritableLimits{}, ""},
		{"raised", map[string]string{"kuri-cri.io/writable-layer": "bytes=2Mi"}, WritableLimits{1 << 20, 0},
			WritableLimits{}, "1048576 at most"},
		{"raised for one", map[string]string{"writable-layer.kuri-cri.io/main": "inodes=101"}, WritableLimits{0, 100},
			WritableLimits{}, "pod.writable_layer_inodes"},
		{"no number", map[string]string{"kuri-cri.io/writable-layer": "bytes=much"}, WritableLimits{},
			WritableLimits{}, "bytes=much"},
		{"zero", map[string]string{"kuri-cri.io/writable-layer": "bytes=0"}, WritableLimits{},
			WritableLimits{}, "bytes=0"},
		{"nothing at all", map[string]string{"kuri-cri.io/writable-layer": ""}, WritableLimits{}, WritableLimits{},
			"kuri-cri.io/writable-layer"},
		{"another word", map[string]string{"kuri-cri.io/writable-layer": "blocks=1"}, WritableLimits{},
			WritableLimits{}, "blocks"},
		{"too much", map[string]string{"kuri-cri.io/writable-layer": "bytes=9999999999Ti"}, WritableLimits{},
			WritableLimits{}, "bytes"},
	} {
		got, err := WritableLayer(&runtime.PodSandboxConfig{Annotations: test.annotations}, "main", test.configured)
		if test.err != "" {
			if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: %v does not say %q", test.name, err, test.err)
			}
			continue
		}
		if err != nil || got != test.want {
			t.Errorf("%s: %v, %v; want %v", test.name, got, err, test.want)
		}
	}
}
