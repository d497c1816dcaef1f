package spec

import (
	"slices"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestCDIDevices(t *testing.T) {
	for _, c := range []struct {
		field       []string
		annotations map[string]string
		want        []string
		kind        fault.Kind
	}{
		{},
		{field: []string{"vendor.com/gpu=0", "vendor.com/gpu=1"},
			want: []string{"vendor.com/gpu=0", "vendor.com/gpu=1"}},
		{annotations: map[string]string{"cdi.k8s.io/b": "v.com/c=2", "cdi.k8s.io/a": "v.com/c=1,v.com/c=0",
			"other": "x"}, want: []string{"v.com/c=1", "v.com/c=0", "v.com/c=2"}},
		{field: []string{"v.com/c=1"}, annotations: map[string]string{"cdi.k8s.io/a": "v.com/c=1"},
			want: []string{"v.com/c=1"}},
		{field: []string{"/dev/null"}, kind: fault.Invalid},
		{field: []string{""}, kind: fault.Invalid},
		{annotations: map[string]string{"cdi.k8s.io/a": "v.com/c=1,"}, kind: fault.Invalid},
	} {
		cfg := &runtime.ContainerConfig{Annotations: c.annotations}
		for _, name := range c.field {
			cfg.CDIDevices = append(cfg.CDIDevices, &runtime.CDIDevice{Name: name})
		}
		got, err := CDIDevices(cfg)
		if !slices.Equal(got, c.want) || fault.Of(err) != c.kind {
			t.Errorf("%v, %v: %v, %v", c.field, c.annotations, got, err)
		}
	}
}
