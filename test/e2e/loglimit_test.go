package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/test/harness"
)

func TestLogLimits(t *testing.T) {
	s := newShell(t, harness.Options{Config: "[pod]\nlog_max_size = 1048576\nlog_max_files = 2"})
	id := s.run(t, nil, "sh", "-c", "yes 0123456789 | head -c 8000000")
	s.WaitExit(t, id)
	path := s.ContainerStatus(t, id).LogPath
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 3 {
		t.Fatalf("files %q, %v", files, err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 1048576 {
			t.Errorf("%s: %d bytes, %v", f, st.Size(), err)
		}
	}
	// The application is not slowed, and the end of its output is not lost.
	if lines := s.LogLines(t, id); len(lines) == 0 || !strings.HasPrefix("0123456789", lines[len(lines)-1].Text) {
		t.Errorf("the log ends with %v", lines[len(lines)-1])
	}
}

func TestLogRate(t *testing.T) {
	s := newShell(t, harness.Options{Config: "[pod]\nlog_rate = 65536"})
	id := s.run(t, nil, "sh", "-c", "yes 0123456789 | head -c 4000000; echo end >&2")
	s.WaitExit(t, id)
	st, err := os.Stat(s.ContainerStatus(t, id).LogPath)
	if err != nil || st.Size() > 2<<20 {
		t.Errorf("the log has %d bytes, %v", st.Size(), err)
	}
	if text := s.LogText(t, id, "stderr"); !strings.Contains(text,
		"were dropped: this container may log 65536 bytes a second") {
		t.Errorf("stderr: %q", text)
	}
}
