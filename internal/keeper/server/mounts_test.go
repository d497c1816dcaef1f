package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestListsMountWithABlank(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(file, []byte(`41 25 0:98 / /my\040state\134/mounts rw - tmpfs kuri rw`), 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{`/my state\/mounts`: true, `/my\040state\134/mounts`: false} {
		if got, err := listsMount(file, dir); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", dir, got, err, want)
		}
	}
}

// A mount point is found after a line that is longer than the buffer of a bufio.Scanner.
func TestListsMountAfterALongLine(t *testing.T) {
	overlay := "40 25 0:99 / /merged rw - overlay overlay rw,lowerdir=" + strings.Repeat("/layer:", 20<<10) + "/last\n"
	file := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(file, []byte(overlay+"41 25 0:98 / /state/mounts rw - tmpfs kuri rw\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]bool{"/state/mounts": true, "/state": false, "/merged": true} {
		if got, err := listsMount(file, dir); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", dir, got, err, want)
		}
	}
}
