package spec

import (
	"errors"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestClasses(t *testing.T) {
	weight := uint16(100)
	slow := &specs.LinuxBlockIO{Weight: &weight}
	type annotations = map[string]string
	for _, test := range []struct {
		name           string
		pod, container annotations
		noRDT          bool
		blockIO, rdt   string
		err            string
	}{
		{name: "none"},
		{name: "of the container", container: annotations{"io.kubernetes.cri.blockio-class": "slow",
			"io.kubernetes.cri.rdt-class": "gold"}, blockIO: "slow", rdt: "gold"},
		{name: "of the pod", pod: annotations{"blockio.resources.beta.kubernetes.io/pod": "slow",
			"rdt.resources.beta.kubernetes.io/pod": "gold"}, blockIO: "slow", rdt: "gold"},
		{name: "of the pod's container", pod: annotations{"rdt.resources.beta.kubernetes.io/container.c": "gold",
			"rdt.resources.beta.kubernetes.io/pod": "silver"}, rdt: "gold"},
		{name: "of another container", pod: annotations{"rdt.resources.beta.kubernetes.io/container.d": "gold",
			"blockio.resources.beta.kubernetes.io/container.d": "slow"}},
		{name: "the container's own counts first", container: annotations{"io.kubernetes.cri.rdt-class": "silver"},
			pod: annotations{"rdt.resources.beta.kubernetes.io/container.c": "gold"}, rdt: "silver"},
		{name: "the default class", pod: annotations{"rdt.resources.beta.kubernetes.io/pod": "system/default"},
			noRDT: true},
		{name: "no such block I/O class", container: annotations{"io.kubernetes.cri.blockio-class": "fast"},
			err: "io.kubernetes.cri.blockio-class"},
		{name: "no such block I/O class of the pod",
			pod: annotations{"blockio.resources.beta.kubernetes.io/pod": "fast"},
			err: "blockio.resources.beta.kubernetes.io/pod] of the pod"},
		{name: "an empty block I/O class", pod: annotations{"blockio.resources.beta.kubernetes.io/pod": ""},
			err: "pod.blockio_config"},
		{name: "no such RDT class", pod: annotations{"rdt.resources.beta.kubernetes.io/pod": "../info"},
			err: "[\"gold\" \"silver\"]"},
		{name: "no RDT", container: annotations{"io.kubernetes.cri.rdt-class": "gold"}, noRDT: true, err: "resctrl"},
	} {
		in := testCase{}.input(t)
		in.Image.Cmd = []string{"sh"}
		in.Container.Metadata = &runtime.ContainerMetadata{Name: "c"}
		in.Container.Annotations, in.Pod.Annotations = test.container, test.pod
		in.Node.BlockIO, in.Node.RDT = map[string]*specs.LinuxBlockIO{"slow": slow}, []string{"gold", "silver"}
		if test.noRDT {
			in.Node.RDT = nil
		}
		spec, _, err := Container(in)
		if test.err != "" {
			if !errors.Is(err, fault.Unimplemented) || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: %v does not say %q", test.name, err, test.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := spec.Linux.Resources.BlockIO == slow; got != (test.blockIO == "slow") {
			t.Errorf("%s: block I/O class: %v", test.name, spec.Linux.Resources.BlockIO)
		}
		rdt := ""
		if spec.Linux.IntelRdt != nil {
			rdt = spec.Linux.IntelRdt.ClosID
		}
		if rdt != test.rdt {
			t.Errorf("%s: RDT class %q, want %q", test.name, rdt, test.rdt)
		}
	}
}
