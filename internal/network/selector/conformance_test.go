package selector

import (
	"testing"

	"github.com/kuri-cri/kuri/internal/network/bridge"
	"github.com/kuri-cri/kuri/internal/network/cni"
	"github.com/kuri-cri/kuri/internal/network/networktest"
)

func TestConformance(t *testing.T) { networktest.Conformance(t, selectSubject) }

func selectSubject(t *testing.T) networktest.Subject {
	return selectAt(t, t.TempDir(), cni.Config{ConfDir: t.TempDir(), CacheDir: t.TempDir()})
}

func selectAt(t *testing.T, dir string, config cni.Config) networktest.Subject {
	c, err := cni.New(config)
	networktest.Must(t, err)
	s := newSelect(t, c, openBridge(t, dir))
	return networktest.Subject{Network: s, Reclaim: s.Reclaim,
		Reopen: func(t *testing.T) networktest.Subject { return selectAt(t, dir, config) }}
}

func newSelect(t *testing.T, c *cni.Network, b *bridge.Network) *Selector {
	s := New(c, b, Auto)
	t.Cleanup(func() { networktest.Must(t, s.Close()) })
	return s
}
