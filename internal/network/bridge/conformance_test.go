package bridge

import (
	"testing"

	"github.com/kuri-cri/kuri/internal/network/networktest"
)

func TestConformance(t *testing.T) { networktest.Conformance(t, bridgeSubject) }

func bridgeSubject(t *testing.T) networktest.Subject { return bridgeAt(t, t.TempDir()) }

func bridgeAt(t *testing.T, dir string) networktest.Subject {
	b := newBridge(t, Config{StateDir: dir})
	return networktest.Subject{Network: b, Reclaim: b.Reclaim,
		Reopen: func(t *testing.T) networktest.Subject { return bridgeAt(t, dir) }}
}
