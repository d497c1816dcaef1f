package selector

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/bridge"
	"github.com/kuri-cri/kuri/internal/network/cni"
	"github.com/kuri-cri/kuri/internal/network/networktest"
)

// TestBrokenConfigurations: Ready and Attach name the file and the error, and pods do not get another network.
func TestBrokenConfigurations(t *testing.T) {
	for name, c := range map[string]struct{ file, body, says string }{
		"empty":             {"10-x.conflist", "", "unexpected end"},
		"not JSON":          {"10-x.conflist", "{{{", "invalid character"},
		"not an object":     {"10-x.conflist", `[1]`, "cannot unmarshal"},
		"no name":           {"10-x.conflist", `{"cniVersion":"1.0.0","plugins":[{"type":"p"}]}`, "no name"},
		"name of two kinds": {"10-x.conflist", `{"name":7,"plugins":[{"type":"p"}]}`, "name"},
		"no plugins":        {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n"}`, "no plugin"},
		"empty plugins":     {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[]}`, "no plugins"},
		"no type":           {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{}]}`, "type"},
		"plugins no list":   {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":{}}`, "plugins"},
		"conf without type": {"10-x.conf", `{"cniVersion":"1.0.0","name":"n"}`, "type"},
		"conf without name": {"10-x.conf", `{"cniVersion":"1.0.0","type":"p"}`, "name"},
		"list as a conf":    {"10-x.conf", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"p"}]}`, "type"},
		"missing plugin": {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"nowhere"}]}`,
			`"nowhere"`},
		"type with a path": {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../../bin/sh"}]}`,
			"../../bin/sh"},
		"huge":               {"10-x.conflist", strings.Repeat(" ", 1<<20+1), "at most"},
		"unreadable version": {"10-x.conflist", `{"cniVersion":["1"],"name":"n","plugins":[{"type":"p"}]}`, "cniVersion"},
	} {
		t.Run(name, func(t *testing.T) {
			networktest.RequireRoot(t)
			networktest.Leftovers(t)
			plugins, conf, _ := openCNI(t)
			networktest.Write(t, conf, c.file, c.body)
			networktest.Write(t, conf, "20-later.conflist", `{"cniVersion":"1.0.0","name":"later","plugins":[{"type":"p"}]}`)
			s := newSelect(t, plugins, openBridge(t, t.TempDir()))
			err := s.Ready(t.Context())
			networktest.Wants(t, err, fault.Precondition, c.says)
			if !strings.Contains(err.Error(), c.file) && !strings.Contains(name, "type with") &&
				!strings.Contains(name, "missing") {
				t.Errorf("error %q does not name the file", err)
			}
			pod, _ := networktest.NewPod(t)
			if _, err := s.Attach(t.Context(), pod); err == nil {
				t.Error("attached")
			}
			networktest.Must(t, s.Detach(t.Context(), pod, nil))
		})
	}
}

// TestDeleteGoesToWhatAdded: the configuration changes or vanishes while a pod runs, the daemon is started again, a DEL
// fails: the plugins that added the pod delete it, with the same configuration, until they have.
func TestDeleteGoesToWhatAdded(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	config := cni.Config{ConfDir: t.TempDir(), BinDirs: []string{t.TempDir()}, CacheDir: t.TempDir(),
		Timeout: 30 * time.Second}
	conf, bin := config.ConfDir, config.BinDirs[0]
	plugins, err := cni.New(config)
	networktest.Must(t, err)
	fail := filepath.Join(t.TempDir(), "fail")
	log := networktest.Plugin(t, bin, "own", `grep -o '"wire":"[a-z]*"' >>$log; [ $CNI_COMMAND = DEL ] && { [ -e `+fail+
		` ] && exit 9; exit 0; }; echo '`+networktest.Answer+`'`)
	networktest.Write(t, conf, "10.conf", `{"cniVersion":"1.0.0","name":"wires","type":"own","wire":"red"}`)
	s := newSelect(t, plugins, openBridge(t, t.TempDir()))
	pod, ns := networktest.NewPod(t)
	r, err := s.Attach(t.Context(), pod)
	networktest.Must(t, err)
	if r.By != network.ByCNI || r.Network != "wires" {
		t.Errorf("attached by %s to %s", r.By, r.Network)
	}
	networktest.Must(t, os.Remove(filepath.Join(conf, "10.conf")))
	built, _ := networktest.NewPod(t) // without a configuration, the bridge serves
	rb, err := s.Attach(t.Context(), built)
	networktest.Must(t, err)
	if rb.By != network.ByBridge {
		t.Errorf("attached by %s", rb.By)
	}
	networktest.Write(t, conf, "10.conf", `{"cniVersion":"1.0.0","name":"wires","type":"own","wire":"blue"}`)

	again, err := cni.New(config)
	networktest.Must(t, err)
	s = newSelect(t, again, s.bridge)
	ns.Close()
	networktest.Must(t, syscall.Unmount(pod.NetnsPath, syscall.MNT_DETACH))
	networktest.Must(t, os.WriteFile(fail, nil, 0o600))
	networktest.Wants(t, s.Detach(t.Context(), pod, r), fault.Unavailable, "exit status 9")
	// its record is gone
	networktest.Wants(t, s.Detach(t.Context(), network.Pod{ID: pod.ID}, r), fault.Unavailable, "detach pod "+pod.ID)
	networktest.Must(t, os.Remove(fail))
	networktest.Must(t, s.Detach(t.Context(), pod, r))
	networktest.Must(t, s.Detach(t.Context(), pod, r))
	networktest.Must(t, s.Detach(t.Context(), built, rb))
	if got, want := log(), "ADD\n\"wire\":\"red\"\nDEL\n\"wire\":\"red\"\nDEL\n\"wire\":\"red\"\nDEL\n\"wire\":\"red\""; got != want {
		t.Errorf("the plugin was called as %q, want %q", got, want)
	}
}

// TestConfigurationIsReadOnUse: a configuration that is changed, half written, taken away and put
// back counts from the next Status and the next pod on.
func TestConfigurationIsReadOnUse(t *testing.T) {
	networktest.RequireRoot(t)
	networktest.Leftovers(t)
	plugins, conf, bin := openCNI(t)
	networktest.Plugin(t, bin, "own", `[ $CNI_COMMAND = DEL ] || echo '`+networktest.Answer+`'`)
	s := newSelect(t, plugins, openBridge(t, t.TempDir()))
	good := `{"cniVersion":"1.0.0","name":"%s","plugins":[{"type":"own"}]}`
	for _, step := range []struct {
		what    string
		do      func()
		network string // of a pod that comes then; "": it is refused
	}{
		{"an empty directory", func() {}, bridge.DefaultName},
		{"written", func() { networktest.Write(t, conf, "10.conflist", fmt.Sprintf(good, "red")) }, "red"},
		{"changed", func() { networktest.Write(t, conf, "10.conflist", fmt.Sprintf(good, "blue")) }, "blue"},
		{"half written", func() { networktest.Write(t, conf, "10.conflist", fmt.Sprintf(good, "green")[:30]) }, ""},
		{"written to its end", func() { networktest.Write(t, conf, "10.conflist", fmt.Sprintf(good, "green")) }, "green"},
		{"one before it by name",
			func() { networktest.Write(t, conf, "05.conf", `{"cniVersion":"1.0.0","name":"first","type":"own"}`) }, "first"},
		{"a file that is no configuration", func() {
			networktest.Write(t, conf, "00.conflist.swp", "x")
			networktest.Write(t, conf, "00-README", "x")
		}, "first"},
		{"renamed over it", func() {
			networktest.Write(t, conf, ".new", fmt.Sprintf(good, "renamed"))
			networktest.Must(t, os.Rename(filepath.Join(conf, ".new"), filepath.Join(conf, "05.conf")+"list"))
			networktest.Must(t, os.Remove(filepath.Join(conf, "05.conf")))
		}, "renamed"},
		{"all taken away", func() { networktest.Must(t, os.RemoveAll(conf)) }, bridge.DefaultName},
		{"the directory is back", func() { networktest.Must(t, os.Mkdir(conf, 0o700)) }, bridge.DefaultName},
		{"and the configuration", func() { networktest.Write(t, conf, "10.conflist", fmt.Sprintf(good, "back")) }, "back"},
	} {
		step.do()
		pod, _ := networktest.NewPod(t)
		ready := s.Ready(t.Context())
		r, err := s.Attach(t.Context(), pod)
		if step.network == "" {
			if ready == nil || err == nil {
				t.Errorf("%s: ready %v, attach %v", step.what, ready, err)
			}
			continue
		}
		if ready != nil || err != nil || r.Network != step.network {
			t.Errorf("%s: ready %v, attached to %+v, %v; want %s", step.what, ready, r, err, step.network)
			continue
		}
		networktest.Must(t, s.Detach(t.Context(), pod, r))
	}
}
