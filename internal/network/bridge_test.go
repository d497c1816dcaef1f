package network

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

func newBridge(t testing.TB, config BridgeConfig) *Bridge {
	t.Helper()
	requireRoot(t)
	if config.StateDir == "" {
		config.StateDir = t.TempDir()
	}
	b, err := NewBridge(config)
	must(t, err)
	t.Cleanup(func() { must(t, b.Close()) })
	return b
}

func BenchmarkBridge(b *testing.B) {
	n := newBridge(b, BridgeConfig{})
	ctx := context.Background()
	warm, _ := newPod(b)
	_, err := n.Attach(ctx, warm)
	must(b, err)
	var pods []Pod
	for range b.N {
		p, _ := newPod(b)
		pods = append(pods, p)
	}
	results := make([]*Result, b.N)
	b.ResetTimer()
	for i, p := range pods {
		if results[i], err = n.Attach(ctx, p); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	for i, p := range append(pods, warm) {
		_ = i
		must(b, n.Detach(ctx, p, nil))
	}
}

// TestUsableAtOnce: the first packet after Attach is not lost, not even on a bridge that was just made.
func TestUsableAtOnce(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	n := newBridge(t, BridgeConfig{})
	ctx := t.Context()
	for i := range 40 {
		pod, ns := newPod(t)
		r, err := n.Attach(ctx, pod)
		must(t, err)
		for _, ip := range r.IPs {
			port := serve(t, ns, "tcp", netip.AddrPortFrom(ip, 0).String(), "pod").Port()
			began := time.Now()
			if _, err := ask(nil, "tcp", netip.AddrPortFrom(ip, port)); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 500*time.Millisecond {
				t.Errorf("pod %d: the first connection to %s took %s", i, ip, took)
			}
		}
		must(t, n.Detach(ctx, pod, r))
		if i%4 == 0 {
			must(t, n.Prune(ctx))
		}
	}
}
