package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/kuri-cri/kuri/internal/process"
)

// Only the records of a container whose process has ended, with all its others, are removed without
// its configuration.
func TestDeleteOfAnEndedContainer(t *testing.T) {
	self := os.Getpid()
	born, err := process.StartTime(self)
	if err != nil {
		t.Fatal(err)
	}
	const private, shared = `[{"type":"NEWPID","path":""}]`, `[{"type":"NEWPID","path":"/proc/1/ns/pid"}]`
	for name, c := range map[string]struct {
		native     bool
		pid        int
		born       string
		namespaces string
		want       bool
	}{
		"ended":                           {true, 1 << 30, born, private, true},
		"ended, and its pid used again":   {true, self, born + "1", private, true},
		"running":                         {true, self, born, private, false},
		"ended, in the pod's namespace":   {true, 1 << 30, born, shared, false},
		"ended, in the node's namespace":  {true, 1 << 30, born, `[]`, false},
		"ended, of libcontainer's init":   {false, 1 << 30, born, private, false},
		"ended, with an incomplete state": {true, 1 << 30, born, `[{`, false},
	} {
		l := &Libcontainer{root: t.TempDir()}
		dir, group := filepath.Join(l.root, "one"), filepath.Join(t.TempDir(), "group")
		state := fmt.Sprintf(`{"id":"one","init_process_pid":%d,"init_process_start":%s,"config":{"namespaces":%s},"cgroup_paths":{"cpu":%q,"memory":%q}}`,
			c.pid, c.born, c.namespaces, group, group)
		files := map[string]string{"state.json": state, startFile: ""}
		if c.native {
			files[nativeFile] = ""
		}
		for _, made := range []string{dir, filepath.Join(group, "sub")} {
			if err := os.MkdirAll(made, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		for file, body := range files {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(body), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		done, err := l.deleteEnded("one")
		if err != nil || done != c.want {
			t.Errorf("%s: %t, %v", name, done, err)
		}
		for _, path := range []string{dir, group} {
			if _, err := os.Stat(path); os.IsNotExist(err) != c.want {
				t.Errorf("%s: %s: %v", name, filepath.Base(path), err)
			}
		}
	}
	l := &Libcontainer{root: t.TempDir()}
	for _, id := range []string{"none", "../none", ""} {
		if done, err := l.deleteEnded(id); done || err != nil {
			t.Errorf("%q: %t, %v", id, done, err)
		}
	}
}
