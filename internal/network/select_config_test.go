package network

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// TestBrokenConfigurations: Ready and Attach name the file and the error, and pods do not get another network.
func TestBrokenConfigurations(t *testing.T) {
	for name, c := range map[string]struct{ file, body, says string }{
		"empty":              {"10-x.conflist", "", "unexpected end"},
		"not JSON":           {"10-x.conflist", "{{{", "invalid character"},
		"not an object":      {"10-x.conflist", `[1]`, "cannot unmarshal"},
		"no name":            {"10-x.conflist", `{"cniVersion":"1.0.0","plugins":[{"type":"p"}]}`, "no name"},
		"name of two kinds":  {"10-x.conflist", `{"name":7,"plugins":[{"type":"p"}]}`, "name"},
		"no plugins":         {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n"}`, "no plugin"},
		"empty plugins":      {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[]}`, "no plugins"},
		"no type":            {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{}]}`, "type"},
		"plugins no list":    {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":{}}`, "plugins"},
		"conf without type":  {"10-x.conf", `{"cniVersion":"1.0.0","name":"n"}`, "type"},
		"conf without name":  {"10-x.conf", `{"cniVersion":"1.0.0","type":"p"}`, "name"},
		"list as a conf":     {"10-x.conf", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"p"}]}`, "type"},
		"missing plugin":     {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"nowhere"}]}`, `"nowhere"`},
		"type with a path":   {"10-x.conflist", `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../../bin/sh"}]}`, "../../bin/sh"},
		"huge":               {"10-x.conflist", strings.Repeat(" ", 1<<20+1), "at most"},
		"unreadable version": {"10-x.conflist", `{"cniVersion":["1"],"name":"n","plugins":[{"type":"p"}]}`, "cniVersion"},
	} {
		t.Run(name, func(t *testing.T) {
			requireRoot(t)
			leftovers(t)
			plugins, conf, _ := openCNI(t)
			write(t, conf, c.file, c.body)
			write(t, conf, "20-later.conflist", `{"cniVersion":"1.0.0","name":"later","plugins":[{"type":"p"}]}`)
			s := newSelect(t, plugins, openBridge(t, t.TempDir()))
			err := s.Ready(t.Context())
			wants(t, err, fault.Precondition, c.says)
			if !strings.Contains(err.Error(), c.file) && !strings.Contains(name, "type with") && !strings.Contains(name, "missing") {
				t.Errorf("error %q does not name the file", err)
			}
			pod, _ := newPod(t)
			if _, err := s.Attach(t.Context(), pod); err == nil {
				t.Error("attached")
			}
			must(t, s.Detach(t.Context(), pod, nil))
		})
	}
}

// TestDeleteGoesToWhatAdded: the configuration changes or vanishes while a pod runs, the daemon is started again, a DEL
// fails: the plugins that added the pod delete it, with the same configuration, until they have.
func TestDeleteGoesToWhatAdded(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	config := CNIConfig{ConfDir: t.TempDir(), BinDirs: []string{t.TempDir()}, CacheDir: t.TempDir(), Timeout: 30 * time.Second}
	conf, bin := config.ConfDir, config.BinDirs[0]
	plugins, err := NewCNI(config)
	must(t, err)
	fail := filepath.Join(t.TempDir(), "fail")
	log := plugin(t, bin, "own", `grep -o '"wire":"[a-z]*"' >>$log; [ $CNI_COMMAND = DEL ] && { [ -e `+fail+` ] && exit 9; exit 0; }; echo '`+answer+`'`)
	write(t, conf, "10.conf", `{"cniVersion":"1.0.0","name":"wires","type":"own","wire":"red"}`)
	s := newSelect(t, plugins, openBridge(t, t.TempDir()))
	pod, ns := newPod(t)
	r, err := s.Attach(t.Context(), pod)
	must(t, err)
	if r.By != ByCNI || r.Network != "wires" {
		t.Errorf("attached by %s to %s", r.By, r.Network)
	}
	must(t, os.Remove(filepath.Join(conf, "10.conf")))
	built, _ := newPod(t) // without a configuration, the bridge serves
	rb, err := s.Attach(t.Context(), built)
	must(t, err)
	if rb.By != ByBridge {
		t.Errorf("attached by %s", rb.By)
	}
	write(t, conf, "10.conf", `{"cniVersion":"1.0.0","name":"wires","type":"own","wire":"blue"}`)

	again, err := NewCNI(config)
	must(t, err)
	s = newSelect(t, again, s.bridge)
	ns.Close()
	must(t, syscall.Unmount(pod.NetnsPath, syscall.MNT_DETACH))
	must(t, os.WriteFile(fail, nil, 0o600))
	wants(t, s.Detach(t.Context(), pod, r), fault.Unavailable, "exit status 9")
	wants(t, s.Detach(t.Context(), Pod{ID: pod.ID}, r), fault.Unavailable, "detach pod "+pod.ID) // its record is gone
	must(t, os.Remove(fail))
	must(t, s.Detach(t.Context(), pod, r))
	must(t, s.Detach(t.Context(), pod, r))
	must(t, s.Detach(t.Context(), built, rb))
	if got, want := log(), "ADD\n\"wire\":\"red\"\nDEL\n\"wire\":\"red\"\nDEL\n\"wire\":\"red\"\nDEL\n\"wire\":\"red\""; got != want {
		t.Errorf("the plugin was called as %q, want %q", got, want)
	}
}

// TestConfigurationIsReadOnUse: a configuration that is changed, half written, taken away and put back counts from the next
// Status and the next pod on.
func TestConfigurationIsReadOnUse(t *testing.T) {
	requireRoot(t)
	leftovers(t)
	plugins, conf, bin := openCNI(t)
	plugin(t, bin, "own", `[ $CNI_COMMAND = DEL ] || echo '`+answer+`'`)
	s := newSelect(t, plugins, openBridge(t, t.TempDir()))
	good := `{"cniVersion":"1.0.0","name":"%s","plugins":[{"type":"own"}]}`
	for _, step := range []struct {
		what    string
		do      func()
		network string // of a pod that comes then; "": it is refused
	}{
		{"an empty directory", func() {}, DefaultBridge},
		{"written", func() { write(t, conf, "10.conflist", fmt.Sprintf(good, "red")) }, "red"},
		{"changed", func() { write(t, conf, "10.conflist", fmt.Sprintf(good, "blue")) }, "blue"},
		{"half written", func() { write(t, conf, "10.conflist", fmt.Sprintf(good, "green")[:30]) }, ""},
		{"written to its end", func() { write(t, conf, "10.conflist", fmt.Sprintf(good, "green")) }, "green"},
		{"one before it by name", func() { write(t, conf, "05.conf", `{"cniVersion":"1.0.0","name":"first","type":"own"}`) }, "first"},
		{"a file that is no configuration", func() { write(t, conf, "00.conflist.swp", "x"); write(t, conf, "00-README", "x") }, "first"},
		{"renamed over it", func() {
			write(t, conf, ".new", fmt.Sprintf(good, "renamed"))
			must(t, os.Rename(filepath.Join(conf, ".new"), filepath.Join(conf, "05.conf")+"list"))
			must(t, os.Remove(filepath.Join(conf, "05.conf")))
		}, "renamed"},
		{"all taken away", func() { must(t, os.RemoveAll(conf)) }, DefaultBridge},
		{"the directory is back", func() { must(t, os.Mkdir(conf, 0o700)) }, DefaultBridge},
		{"and the configuration", func() { write(t, conf, "10.conflist", fmt.Sprintf(good, "back")) }, "back"},
	} {
		step.do()
		pod, _ := newPod(t)
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
		must(t, s.Detach(t.Context(), pod, r))
	}
}
