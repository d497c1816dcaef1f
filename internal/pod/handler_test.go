package pod

import (
	"errors"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestHandlers(t *testing.T) {
	p := &Pods{Options: Options{Handlers: withDefault(map[string]Handler{"red": {}, "blue": {CNIConfDir: "/etc/cni/blue.d"}})}}
	if names := p.HandlerNames(); !slices.Equal(names, []string{"", "blue", "red"}) {
		t.Errorf("names %q", names)
	}
	for _, name := range []string{"", "red", "blue"} {
		if _, err := p.Handler(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.Handler("green"); !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), `"green"`) || !strings.Contains(err.Error(), "blue, red") {
		t.Errorf("an unknown handler: %v", err)
	}
	p.Handlers = withDefault(nil)
	if _, err := p.Handler("green"); !errors.Is(err, fault.NotFound) {
		t.Errorf("an unknown handler where none is configured: %v", err)
	}
}

func TestAPodsNetworkIsThatOfItsHandler(t *testing.T) {
	p := &Pods{Options: Options{Handlers: withDefault(map[string]Handler{"blue": {CNIConfDir: "/etc/cni/blue.d"}})}}
	for handler, dir := range map[string]string{"": "", "blue": "/etc/cni/blue.d", "gone": ""} {
		r := &SandboxRecord{ID: newID(), Handler: handler, Config: message[*runtime.PodSandboxConfig]{&runtime.PodSandboxConfig{}}}
		if got := p.networkPod(r).CNIConfDir; got != dir {
			t.Errorf("handler %q: %q, want %q", handler, got, dir)
		}
	}
}
