package spec

import (
	"math"
	"reflect"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestParseUlimits(t *testing.T) {
	for _, c := range []struct {
		list string
		want Ulimits
		bad  bool
	}{
		{"", Ulimits{}, false},
		{"nofile=1024:4096, core=0", Ulimits{"RLIMIT_NOFILE": {1024, 4096}, "RLIMIT_CORE": {0, 0}}, false},
		{"MEMLOCK=unlimited", Ulimits{"RLIMIT_MEMLOCK": {math.MaxUint64, math.MaxUint64}}, false},
		{"memlock=8:-1", Ulimits{"RLIMIT_MEMLOCK": {8, math.MaxUint64}}, false},
		{"nofile", nil, true},
		{"nofile=", nil, true},
		{"nofile=2:1", nil, true},
		{"nofile=a", nil, true},
		{"files=1", nil, true},
		{"nofile=1:2:3", nil, true},
	} {
		got, err := ParseUlimits("f", c.list)
		if (err != nil) != c.bad || !c.bad && !reflect.DeepEqual(got, c.want) ||
			c.bad && fault.Of(err) != fault.Invalid {
			t.Errorf("%q: %v, %v", c.list, got, err)
		}
	}
}

func TestUlimits(t *testing.T) {
	for _, c := range []struct {
		name        string
		configured  Ulimits
		annotations map[string]string
		capable     bool
		want        []specs.POSIXRlimit
		kind        fault.Kind
	}{
		{name: "none"},
		{name: "configured", configured: Ulimits{"RLIMIT_NOFILE": {10, 20}},
			want: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}}},
		{name: "the pod's, then the container's", configured: Ulimits{"RLIMIT_NOFILE": {10, 20}},
			annotations: map[string]string{"kuri-cri.io/ulimits": "nofile=1:2,core=0",
				"ulimits.kuri-cri.io/c": "nofile=3:4", "ulimits.kuri-cri.io/other": "core=9"},
			want: []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NOFILE", Soft: 3, Hard: 4}}},
		{name: "above the configuration", configured: Ulimits{"RLIMIT_NOFILE": {10, 20}},
			annotations: map[string]string{"kuri-cri.io/ulimits": "nofile=21"}, kind: fault.Invalid},
		{name: "above the node", annotations: map[string]string{"kuri-cri.io/ulimits": "nofile=1001"}, capable: true,
			kind: fault.Invalid},
		{name: "not a limit", annotations: map[string]string{"ulimits.kuri-cri.io/c": "x"}, kind: fault.Invalid},
		{name: "configured above the node, without the capability", configured: Ulimits{"RLIMIT_NOFILE": {10, 2000}},
			kind: fault.Unimplemented},
		{name: "configured above the node, with the capability",
			configured: Ulimits{"RLIMIT_NOFILE": {10, 2000}}, capable: true,
			want: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 2000}}},
	} {
		in := testCase{Image: imagespec.ImageConfig{Cmd: []string{"sh"}}}.input(t)
		in.Container.Metadata = &runtime.ContainerMetadata{Name: "c"}
		in.Pod.Annotations, in.Ulimits = c.annotations, c.configured
		in.Node.Ulimits = Ulimits{"RLIMIT_NOFILE": {500, 1000}}
		if !c.capable {
			in.Node.Capabilities = []string{"CAP_CHOWN"}
		}
		spec, _, err := Container(in)
		if fault.Of(err) != c.kind {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err == nil && !reflect.DeepEqual(spec.Process.Rlimits, c.want) {
			t.Errorf("%s: %v, want %v", c.name, spec.Process.Rlimits, c.want)
		}
	}
}
