package network

import (
	"testing"
)

func TestSelectConformance(t *testing.T) { conformance(t, selectSubject) }

func selectSubject(t *testing.T) subject {
	return selectAt(t, t.TempDir(), CNIConfig{ConfDir: t.TempDir(), CacheDir: t.TempDir()})
}

func selectAt(t *testing.T, dir string, config CNIConfig) subject {
	c, err := NewCNI(config)
	must(t, err)
	s := newSelect(t, c, openBridge(t, dir))
	return subject{Network: s, reclaim: s.Reclaim, reopen: func(t *testing.T) subject { return selectAt(t, dir, config) }}
}

func newSelect(t *testing.T, c *CNI, b *Bridge) *Select {
	s := NewSelect(c, b, Auto)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}
