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
	p := &Pods{Options: Options{Handlers: withDefault(map[string]Handler{"red": {},
		"blue": {CNIConfDir: "/etc/cni/blue.d"}})}}
	if names := p.HandlerNames(); !slices.Equal(names, []string{"", "blue", "red"}) {
		t.Errorf("names %q", names)
	}
	for _, name := range []string{"", "red", "blue"} {
		if _, err := p.Handler(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.Handler("green"); !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), `"green"`) ||
		!strings.Contains(err.Error(), "blue, red") {
		t.Errorf("an unknown handler: %v", err)
	}
	p.Handlers = withDefault(nil)
	if _, err := p.Handler("green"); !errors.Is(err, fault.NotFound) {
		t.Errorf("an unknown handler where none is configured: %v", err)
	}
}

// A pod keeps the handler as of its creation. If its record has only the name, the currently configured handler
// applies.
func TestAPodKeepsItsHandler(t *testing.T) {
	config := message[*runtime.PodSandboxConfig]{&runtime.PodSandboxConfig{}}
	p := &Pods{Options: Options{Handlers: withDefault(map[string]Handler{"blue": {CNIConfDir: "/etc/cni/blue.d",
		Platform: "linux/arm64"}})}}
	for _, c := range []struct {
		name string
		r    SandboxRecord
		want Handler
	}{
		{"the default one", SandboxRecord{Resolved: &Handler{}}, Handler{}},
		{"one that was changed", SandboxRecord{Handler: "blue", Resolved: &Handler{CNIConfDir: "/etc/cni/old.d"}},
			Handler{CNIConfDir: "/etc/cni/old.d"}},
		{"one that is gone", SandboxRecord{Handler: "red", Resolved: &Handler{Platform: "linux/arm64"}},
			Handler{Platform: "linux/arm64"}},
		{"the default one, by name", SandboxRecord{}, Handler{}},
		{"one that is there, by name", SandboxRecord{Handler: "blue"},
			Handler{CNIConfDir: "/etc/cni/blue.d", Platform: "linux/arm64"}},
		{"one that is gone, by name", SandboxRecord{Handler: "red"}, Handler{}},
	} {
		c.r.ID, c.r.Config = newID(), config
		if got := p.handlerOf(&c.r); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		if got := p.networkPod(&c.r).CNIConfDir; got != c.want.CNIConfDir {
			t.Errorf("%s: its network is of %q, want %q", c.name, got, c.want.CNIConfDir)
		}
	}
}
