package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

// A pod could put a symlink in place of its own log directory or of a directory below it. Those
// above are the administrator's.
func TestLinksAtALogDirectoryAreNotFollowed(t *testing.T) {
	top := t.TempDir()
	real := filepath.Join(top, "real")
	for _, dir := range []string{"real/pod/ctr", "victim/ctr"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(filepath.Join(top, target), filepath.Join(top, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("real", "logs")               // a symlink of the administrator
	link("victim", "real/linked")      // the log directory of a pod
	link("victim/ctr", "real/pod/ctx") // a directory in it
	for _, c := range []struct {
		directory, log string
		ok             bool
	}{
		{"logs/pod", "logs/pod/ctr/0.log", true},
		{"logs/pod", "logs/pod/0.log", true},
		{"real/pod", "real/pod/ctr/0.log", true},
		{"logs/linked", "logs/linked/0.log", false},
		{"logs/linked", "logs/linked/ctr/0.log", false},
		{"logs/pod", "logs/pod/ctx/0.log", false},
		{"logs/pod", "logs/other/0.log", false}, // not below its directory
		{"", "logs/linked/ctr/0.log", true},     // the request of a daemon that sends no directory
	} {
		place := logPlace{path: filepath.Join(top, c.log)}
		if c.directory != "" {
			place.directory = filepath.Join(top, c.directory)
		}
		l, err := openLog(place, logLimits{})
		if (err == nil) != c.ok ||
			err != nil && (fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), place.path)) {
			t.Errorf("%s in %q: %v", c.log, c.directory, err)
		}
		if l != nil {
			l.close()
		}
	}
	if left, _ := filepath.Glob(filepath.Join(top, "victim/*.log")); len(left) > 0 {
		t.Errorf("a file was made behind a link: %s", left)
	}

	// The same holds for an open log, when it is reopened and when it is rotated.
	l, err := openLog(logPlace{filepath.Join(real, "pod/ctr/0.log"), filepath.Join(real, "pod")},
		logLimits{size: 10, files: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	victim := filepath.Join(top, "victim/ctr/0.log")
	if err := os.WriteFile(victim, []byte("theirs"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(real, "pod"), filepath.Join(real, "gone")); err != nil {
		t.Fatal(err)
	}
	link("victim", "real/pod")
	if err := l.reopen(); fault.Of(err) != fault.Invalid {
		t.Errorf("reopened behind a link: %v", err)
	}
	l.write("stdout", []byte("more than ten bytes\n"), true)
	l.write("stdout", []byte("more than ten bytes\n"), true)
	if body, err := os.ReadFile(victim); string(body) != "theirs" {
		t.Errorf("what is behind the link was renamed or written: %q, %v", body, err)
	}
	if body, err := os.ReadFile(filepath.Join(real, "gone/ctr/0.log")); strings.Count(string(body), "more") != 2 {
		t.Errorf("what could not be rotated is lost: %q, %v", body, err)
	}
}
