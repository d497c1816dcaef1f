package network

import (
	"testing"
)

func TestConformance(t *testing.T) { conformance(t, bridgeSubject) }

func bridgeSubject(t *testing.T) subject { return bridgeAt(t, t.TempDir()) }

func bridgeAt(t *testing.T, dir string) subject {
	b := newBridge(t, BridgeConfig{StateDir: dir})
	return subject{Network: b, reclaim: b.Reclaim, reopen: func(t *testing.T) subject { return bridgeAt(t, dir) }}
}
