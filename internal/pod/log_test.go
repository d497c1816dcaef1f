package pod

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestDirectoriesOfLogs(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(".", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for log, want := range map[string]fault.Kind{
		"a/b/0.log":                       "",
		"file/0.log":                      fault.Precondition,
		"link/0.log":                      fault.Invalid,
		strings.Repeat("x", 256) + "/log": fault.Precondition,
	} {
		err := makeLogDir(dir, filepath.Join(dir, log))
		if kind := fault.Of(err); kind != want || (err == nil) != (want == "") {
			t.Errorf("%.20s: %v of kind %q, want %q", log, err, kind, want)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "a/b")); err != nil || !st.IsDir() {
		t.Errorf("the directory: %v", err)
	}
}
