package cni

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/kuri-cri/kuri/internal/network/networktest"
)

// TestImpatientCaller: when the caller leaves, the plugin is ended and what it did is taken back.
func TestImpatientCaller(t *testing.T) {
	networktest.RequireRoot(t)
	cni, conf, bin := newCNI(t)
	log := networktest.Plugin(t, bin, "own", `[ $CNI_COMMAND = DEL ] && exit 0; sleep 100`)
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.0.0","name":"wires","plugins":[{"type":"own"}]}`)
	pod, _ := networktest.NewPod(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := cni.Attach(ctx, pod); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if got := log(); got != "ADD\nDEL" {
		t.Errorf("the plugin was called for %q", got)
	}
}

// TestSlowPlugin: a plugin that takes its time holds up its own pod and no other.
func TestSlowPlugin(t *testing.T) {
	networktest.RequireRoot(t)
	cni, conf, bin := newCNI(t)
	cni.config.Timeout = time.Minute
	cni, err := New(cni.config)
	networktest.Must(t, err)
	slow := filepath.Join(t.TempDir(), "slow")
	networktest.Plugin(t, bin, "own", `while [ $CNI_COMMAND = ADD ] && [ "$(cat `+slow+
		`)" = $CNI_CONTAINERID ]; do sleep 0.05; done; echo '`+networktest.Answer+`'`)
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.0.0","name":"wires","plugins":[{"type":"own"}]}`)
	patient, _ := networktest.NewPod(t)
	networktest.Must(t, os.WriteFile(slow, []byte(patient.ID), 0o600))
	done := make(chan error)
	go func() {
		_, err := cni.Attach(context.WithoutCancel(t.Context()), patient)
		done <- err
	}()
	for range 3 {
		pod, _ := networktest.NewPod(t)
		networktest.Must(t, cni.Detach(t.Context(), pod, networktest.Attach(t, cni, pod)))
	}
	select {
	case err := <-done:
		t.Errorf("the slow one is done already: %v", err)
	default:
	}
	networktest.Must(t, os.WriteFile(slow, nil, 0o600)) // it has taken its time
	networktest.Must(t, <-done)
	networktest.Must(t, cni.Detach(t.Context(), patient, nil))
}

// budgets runs plugins as the network does, and keeps how long the last run for each verb might have taken.
type budgets struct {
	*plugins
	mu   sync.Mutex // guards left
	left map[string]time.Duration
}

func (b *budgets) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	left := b.timeout
	if deadline, ok := ctx.Deadline(); ok {
		left = min(left, time.Until(deadline))
	}
	for _, e := range environ {
		if verb, ok := strings.CutPrefix(e, "CNI_COMMAND="); ok {
			b.mu.Lock()
			b.left[verb] = left
			b.mu.Unlock()
		}
	}
	return b.plugins.ExecPlugin(ctx, path, stdin, environ)
}

// TestTimeOfPlugins: with what is configured by default a plugin may take a minute at ADD, at DEL,
// also at the one after an ADD that failed, and at CHECK; STATUS and GC, which others wait for, are
// shorter.
func TestTimeOfPlugins(t *testing.T) {
	networktest.RequireRoot(t)
	c, conf, bin := newCNI(t)
	cni, err := New(Config{ConfDir: conf, BinDirs: []string{bin}, CacheDir: c.config.CacheDir})
	networktest.Must(t, err)
	seen := &budgets{plugins: &plugins{timeout: cni.config.Timeout}, left: map[string]time.Duration{}}
	cni.cni = libcni.NewCNIConfigWithCacheDir([]string{bin}, cni.config.CacheDir, seen)
	fail := filepath.Join(t.TempDir(), "fail")
	networktest.Plugin(t, bin, "own", `[ $CNI_COMMAND = ADD ] && [ -e `+fail+` ] && exit 1; echo '`+networktest.Answer+`'`)
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.1.0","name":"wires","plugins":[{"type":"own"}]}`)
	pod, _ := networktest.NewPod(t)
	networktest.Must(t, cni.Ready(t.Context()))
	r := networktest.Attach(t, cni, pod)
	networktest.Must(t, cni.Check(t.Context(), pod.ID))
	networktest.Must(t, cni.GC(t.Context()))
	networktest.Must(t, cni.Detach(t.Context(), pod, r))
	for verb, least := range map[string]time.Duration{"ADD": time.Minute, "DEL": time.Minute, "CHECK": time.Minute,
		"STATUS": 9 * time.Second, "GC": 29 * time.Second} {
		if seen.left[verb] < least {
			t.Errorf("%s may take %s", verb, seen.left[verb])
		}
	}
	seen.left = map[string]time.Duration{}
	networktest.Must(t, os.WriteFile(fail, nil, 0o600))
	if _, err := cni.Attach(t.Context(), pod); err == nil {
		t.Error("attached")
	}
	if seen.left["DEL"] < time.Minute {
		t.Errorf("DEL after a failed ADD may take %s", seen.left["DEL"])
	}
}
