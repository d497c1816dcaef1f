package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
)

func TestFilesToHold(t *testing.T) {
	dir := t.TempDir()
	paths := map[string]string{"": dir}
	r := &cgroups.Resources{BlkioWeight: 1000, Unified: map[string]string{"memory.oom.group": "1", "memory.high": "4096"}}
	config := &configs.Config{Cgroups: &cgroups.Cgroup{Resources: r}}
	if got := toHold(config, paths); len(got) != 0 {
		t.Errorf("without systemd: %v", got)
	}
	config.Cgroups.Systemd = true
	if got := toHold(config, map[string]string{"memory": dir}); len(got) != 0 {
		t.Errorf("on v1: %v", got)
	}
	group, weight, bfq := filepath.Join(dir, "memory.oom.group"), filepath.Join(dir, "io.weight"), filepath.Join(dir,
		"io.bfq.weight")
	if got := toHold(config, paths); len(got) != 2 || got[group] != "1" || got[weight] != "10000" {
		t.Errorf("%v", got)
	}
	write(t, bfq, "")
	if got := toHold(config, paths); len(got) != 2 || got[bfq] != "1000" {
		t.Errorf("with BFQ: %v", got)
	}
	r.Unified["io.bfq.weight"] = "20" // written last
	if got := toHold(config, paths); len(got) != 2 || got[bfq] != "20" {
		t.Errorf("with BFQ, by the file too: %v", got)
	}
}

func TestHeldFiles(t *testing.T) {
	dir := t.TempDir()
	group, weight := filepath.Join(dir, "memory.oom.group"), filepath.Join(dir, "io.weight")
	write(t, group, "1\n")
	write(t, weight, "100\n")
	var h cgroupFiles
	defer h.close()
	h.release("nobody")
	if err := h.hold("one", map[string]string{group: "1", weight: "200"}); err != nil {
		t.Fatal(err)
	}
	says := func(path, want string) error {
		body, err := os.ReadFile(path)
		if err != nil || string(body) != want {
			return fmt.Errorf("%s says %q, want %q; %w", filepath.Base(path), body, want, err)
		}
		return nil
	}
	eventually := func(path, want string) {
		t.Helper()
		var err error
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			if err = says(path, want); err == nil {
				return
			}
		}
		t.Error(err)
	}
	if err := says(weight, "200"); err != nil {
		t.Errorf("what had changed before: %v", err)
	}
	for range 3 {
		write(t, group, "0")
		eventually(group, "1")
	}
	// From now on another value is held.
	if err := h.hold("one", map[string]string{group: "0", weight: "200"}); err != nil {
		t.Fatal(err)
	}
	write(t, group, "1")
	eventually(group, "0")

	// A removed file does not disturb the others, and its watch is forgotten.
	if err := os.Remove(weight); err != nil {
		t.Fatal(err)
	}
	write(t, group, "1")
	eventually(group, "0")
	h.mu.Lock()
	if len(h.files) != 1 {
		t.Errorf("%d files are watched", len(h.files))
	}
	h.mu.Unlock()

	h.release("one")
	write(t, group, "1")
	time.Sleep(20 * time.Millisecond)
	if err := says(group, "1"); err != nil {
		t.Errorf("after it was let go: %v", err)
	}
	if err := h.hold("two", map[string]string{filepath.Join(dir, "absent"): "1"}); err == nil {
		t.Error("a file that is not there is held")
	}
	h.close()
	h.close()
	h.release("two")
}

func TestSays(t *testing.T) {
	for _, c := range []struct {
		got, want string
		ok        bool
	}{
		{"1\n", "1", true},
		{"0\n", "1", false},
		{"default 100\n", "100", true},
		{"default 100\n", "default 100", true},
		{"default 100\n8:0 50\n", "200\n8:0 50", false},
		{"default 100\n8:0 50\n", "100\n8:0 50\n", true},
		{"", "", true},
		{"", "1", false},
	} {
		if got := says(c.got, c.want); got != c.ok {
			t.Errorf("%q was written, %q is read: %v", c.want, c.got, got)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
