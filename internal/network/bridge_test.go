package network

import (
	"context"
	"testing"
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
