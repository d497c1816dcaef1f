package selector

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/bridge"
	"github.com/kuri-cri/kuri/internal/network/cni"
	"github.com/kuri-cri/kuri/internal/network/networktest"
)

// openCNI is a CNI network with empty directories.
func openCNI(t *testing.T) (c *cni.Network, conf, bin string) {
	t.Helper()
	conf, bin = t.TempDir(), t.TempDir()
	c, err := cni.New(cni.Config{ConfDir: conf, BinDirs: []string{bin}, CacheDir: t.TempDir(), Timeout: 30 * time.Second})
	networktest.Must(t, err)
	return c, conf, bin
}

// openBridge is a built-in network with its leases in dir.
func openBridge(t *testing.T, dir string) *bridge.Network {
	t.Helper()
	networktest.RequireRoot(t)
	b, err := bridge.New(bridge.Config{StateDir: dir})
	networktest.Must(t, err)
	t.Cleanup(func() { networktest.Must(t, b.Close()) })
	return b
}

// detachable is a CNI network whose DEL fails as long as the file is there.
func detachable(t *testing.T) (plugins *cni.Network, fail string, log func() string) {
	plugins, conf, bin := openCNI(t)
	fail = filepath.Join(t.TempDir(), "fail")
	log = networktest.Plugin(t, bin, "own", `[ $CNI_COMMAND = DEL ] && { [ -e `+fail+` ] && exit 9; exit 0; }; echo '`+
		networktest.Answer+`'`)
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.1.0","name":"wires","plugins":[{"type":"own"}]}`)
	return plugins, fail, log
}

// TestDetachedInTheBackground: a DEL that failed is done again without anybody asking; by the next
// daemon, when this one ends before.
func TestDetachedInTheBackground(t *testing.T) {
	networktest.RequireRoot(t)
	plugins, fail, _ := detachable(t)
	s := newSelect(t, plugins, openBridge(t, t.TempDir()))
	gone := func() bool { ids, err := plugins.Attached(); return err == nil && len(ids) == 0 }
	pod, _ := networktest.NewPod(t)
	r, err := s.Attach(t.Context(), pod)
	networktest.Must(t, err)
	networktest.Must(t, os.WriteFile(fail, nil, 0o600))
	networktest.Wants(t, s.Detach(t.Context(), pod, r), fault.Unavailable, "exit status 9", "again in the background")
	networktest.Must(t, os.Remove(fail))
	networktest.Eventually(t, "the pod is detached", gone)
	networktest.Must(t, s.Detach(t.Context(), pod, r))

	r, err = s.Attach(t.Context(), pod)
	networktest.Must(t, err)
	networktest.Must(t, os.WriteFile(fail, nil, 0o600))
	if s.Detach(t.Context(), pod, r) == nil {
		t.Error("detached")
	}
	networktest.Must(t, s.Close())
	networktest.Must(t, os.Remove(fail))
	next := newSelect(t, plugins, openBridge(t, t.TempDir()))
	networktest.Must(t, next.Reclaim(t.Context(), func(string) bool { return false }))
	networktest.Eventually(t, "the pod is detached by the next daemon", gone)
}

// TestStartDoesNotWaitForPlugins: what an earlier process has left is taken away by plugins that
// hang, one after another, while the daemon serves; and Close does not wait for them either.
func TestStartDoesNotWaitForPlugins(t *testing.T) {
	networktest.RequireRoot(t)
	config := cni.Config{ConfDir: t.TempDir(), BinDirs: []string{t.TempDir()}, CacheDir: t.TempDir(),
		Timeout: 30 * time.Second}
	conf, bin := config.ConfDir, config.BinDirs[0]
	plugins, err := cni.New(config)
	networktest.Must(t, err)
	networktest.Plugin(t, bin, "own", `[ $CNI_COMMAND = ADD ] || sleep 100; echo '`+networktest.Answer+`'`)
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.1.0","name":"wires","plugins":[{"type":"own"}]}`)
	for range 3 {
		pod, _ := networktest.NewPod(t)
		networktest.Attach(t, plugins, pod)
	}
	config.Timeout = time.Minute
	plugins, err = cni.New(config)
	networktest.Must(t, err)
	s := newSelect(t, plugins, openBridge(t, t.TempDir()))
	began := time.Now()
	networktest.Must(t, s.Reclaim(t.Context(), func(string) bool { return false }))
	time.Sleep(100 * time.Millisecond)
	networktest.Must(t, s.Close())
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	if ids, err := plugins.Attached(); err != nil || len(ids) != 3 {
		t.Errorf("owed to the next daemon: %v, %v", ids, err)
	}
}

// TestMaintained: after a start the pods that go on are checked, and plugins hear who they are.
func TestMaintained(t *testing.T) {
	networktest.RequireRoot(t)
	plugins, _, log := detachable(t)
	pod, _ := networktest.NewPod(t)
	networktest.Attach(t, plugins, pod)
	s := newSelect(t, plugins, openBridge(t, t.TempDir()))
	networktest.Must(t, s.Reclaim(t.Context(), func(string) bool { return true }))
	networktest.Eventually(t, "CHECK and GC", func() bool { return strings.HasPrefix(log(), "ADD\nCHECK\nGC") })
	networktest.Must(t, s.Detach(t.Context(), pod, nil))
}

// TestChoice: a network that is chosen serves, whatever is configured for the other.
func TestChoice(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	plugins, _, _ := detachable(t)
	empty, _, _ := openCNI(t)
	builtin, only := New(plugins, openBridge(t, t.TempDir()), BuiltIn), New(empty, openBridge(t, t.TempDir()), OnlyCNI)
	defer func() { networktest.Must(t, builtin.Close()); networktest.Must(t, only.Close()) }()
	pod, _ := networktest.NewPod(t)
	r, err := builtin.Attach(t.Context(), pod)
	networktest.Must(t, err)
	if r.By != network.ByBridge {
		t.Errorf("attached by %s", r.By)
	}
	networktest.Must(t, builtin.Detach(t.Context(), pod, r))
	networktest.Wants(t, only.Ready(t.Context()), fault.Precondition, "no CNI configuration")
	_, err = only.Attach(t.Context(), pod)
	networktest.Wants(t, err, fault.Precondition, "no CNI configuration")
}

// TestPodsOfAnAPIServerWaitForCNI: with auto a pod of a cluster is not attached to the built-in
// network while CNI is not configured, and the node's network is not ready from then on; a pod of
// the node's own is. As soon as a configuration is there the pod gets it. Who chooses the built-in
// network gets it for every pod.
func TestPodsOfAnAPIServerWaitForCNI(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	plugins, conf, bin := openCNI(t)
	auto := newSelect(t, plugins, openBridge(t, t.TempDir()))
	static, _ := networktest.NewPod(t)
	static.Annotations = map[string]string{configSource: "file"}
	r, err := auto.Attach(t.Context(), static)
	networktest.Must(t, err)
	networktest.Must(t, auto.Detach(t.Context(), static, r))
	networktest.Must(t, auto.Ready(t.Context()))

	pod, _ := networktest.NewPod(t)
	pod.Annotations = map[string]string{configSource: sourceAPI}
	_, err = auto.Attach(t.Context(), pod)
	networktest.Wants(t, err, fault.Precondition, "default/web", conf, `network.use = "builtin"`)
	networktest.Wants(t, auto.Ready(t.Context()), fault.Precondition, conf)
	_, err = auto.CNI()
	networktest.Wants(t, err, fault.Precondition, conf)

	networktest.Plugin(t, bin, "own", `[ $CNI_COMMAND = ADD ] && echo '`+networktest.Answer+`'; exit 0`)
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.0.0","name":"wires","plugins":[{"type":"own"}]}`)
	networktest.Must(t, auto.Ready(t.Context()))
	r, err = auto.Attach(t.Context(), pod)
	networktest.Must(t, err)
	if r.By != network.ByCNI {
		t.Errorf("attached by %s", r.By)
	}
	networktest.Must(t, auto.Detach(t.Context(), pod, r))

	empty, _, _ := openCNI(t)
	builtin := New(empty, openBridge(t, t.TempDir()), BuiltIn)
	defer func() { networktest.Must(t, builtin.Close()) }()
	r, err = builtin.Attach(t.Context(), pod)
	networktest.Must(t, err)
	networktest.Must(t, builtin.Detach(t.Context(), pod, r))
	networktest.Must(t, builtin.Ready(t.Context()))
}

// TestHandlerDirectory: a pod whose handler has a directory of CNI configurations is attached by
// those, whatever is chosen for others, and detached by the same, also when the directory has
// changed and the next daemon does it; without a configuration there it gets no other network. GC
// goes to the directory, and with the bridge chosen to no other.
func TestHandlerDirectory(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	own := t.TempDir()
	config := cni.Config{ConfDir: t.TempDir(), HandlerDirs: []string{own}, BinDirs: []string{t.TempDir()},
		CacheDir: t.TempDir(), Timeout: 30 * time.Second}
	conf, bin := config.ConfDir, config.BinDirs[0]
	plugins, err := cni.New(config)
	networktest.Must(t, err)
	log := networktest.Plugin(t, bin, "own", `grep -o '"wire":"[a-z]*"' >>$log; [ $CNI_COMMAND = ADD ] && echo '`+
		networktest.Answer+`'; exit 0`)
	const list = `{"cniVersion":"1.1.0","name":"wires","plugins":[{"type":"own","wire":"%s"}]}`
	for _, choice := range []Choice{Auto, BuiltIn} {
		networktest.Write(t, conf, "10.conflist", fmt.Sprintf(list, "common"))
		s := New(plugins, openBridge(t, t.TempDir()), choice)
		defer func() { networktest.Must(t, s.Close()) }()
		pod, _ := networktest.NewPod(t)
		pod.CNIConfDir = own
		_, err := s.Attach(t.Context(), pod)
		networktest.Wants(t, err, fault.Precondition, own, "default/web")
		before := log()
		networktest.Write(t, own, "10.conflist", fmt.Sprintf(list, "blue"))
		r, err := s.Attach(t.Context(), pod)
		networktest.Must(t, err)
		if r.By != network.ByCNI {
			t.Errorf("attached by %s", r.By)
		}
		networktest.Must(t, os.Remove(filepath.Join(own, "10.conflist")))
		next, err := cni.New(config)
		networktest.Must(t, err)
		networktest.Write(t, own, "10.conflist", fmt.Sprintf(list, "green"))
		after := New(next, openBridge(t, t.TempDir()), choice)
		networktest.Must(t, after.Reclaim(t.Context(), func(string) bool { return true }))
		networktest.Eventually(t, "CHECK and GC",
			func() bool { return strings.Contains(log()[len(before):], "GC\n\"wire\":\"green\"") })
		pod.CNIConfDir = "" // the handler is configured no more
		networktest.Must(t, after.Detach(t.Context(), pod, r))
		networktest.Must(t, after.Close())
		networktest.Must(t, os.Remove(filepath.Join(own, "10.conflist")))
		want := "ADD\n\"wire\":\"blue\"\nCHECK\n\"wire\":\"blue\"\nGC\n\"wire\":\"common\"\nGC\n\"wire\":\"green\"\nDEL\n\"wire\":\"blue\""
		if choice == BuiltIn {
			want = strings.Replace(want, "GC\n\"wire\":\"common\"\n", "", 1)
		}
		if got := strings.TrimSpace(log()[len(before):]); got != want {
			t.Errorf("%s: the plugin was called as %q, want %q", choice, got, want)
		}
	}
}
