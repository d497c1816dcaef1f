package record

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

type sample struct{ Name string }

func TestWriteThenRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pod.json")
	for _, opts := range [][]Option{nil, {Sync}} {
		if err := Write(path, 2, sample{"a"}, opts...); err != nil {
			t.Fatal(err)
		}
		var got sample
		if err := Read(path, 2, &got); err != nil || got.Name != "a" {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	left, _ := os.ReadDir(filepath.Dir(path))
	if len(left) != 1 {
		t.Fatalf("temporary files left: %v", left)
	}
}

func TestUnreadableRecordsAreSetAside(t *testing.T) {
	dir := t.TempDir()
	for name, body := range map[string]string{
		"cut.json":   `{"version":1,"data":{"Na`,
		"other.json": `{"hello":1}`,
		"type.json":  `{"version":1,"data":[1]}`,
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		var v sample
		if err := Read(path, 1, &v); !errors.Is(err, fault.Corrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if err := SetAside(path); err != nil {
			t.Error(err)
		}
		if err := Read(path, 1, &v); !errors.Is(err, fault.NotFound) {
			t.Errorf("%s after SetAside: %v", name, err)
		}
	}
}

func TestSetAsideReplacesAnythingThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	for _, make := range []func() error{
		func() error { return os.WriteFile(path, []byte("1"), 0o600) },
		func() error { return os.MkdirAll(filepath.Join(path, "sub"), 0o700) },
		func() error { return os.MkdirAll(filepath.Join(path, "sub"), 0o700) },
		func() error { return os.WriteFile(path, []byte("2"), 0o600) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if err := SetAside(path); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is still there: %v", err)
		}
	}
	if text, err := os.ReadFile(path + ".damaged"); string(text) != "2" {
		t.Errorf("%q, %v", text, err)
	}
}

// A record of a newer version is not damaged: the error names it, the version that wrote it and the
// remedy, and it stays unchanged.
func TestNewer(t *testing.T) {
	dir := t.TempDir()
	for name, body := range map[string]string{
		"a/ours.json":   `{"version":2,"data":{}}`,
		"a/cut.json":    `{"version":9,"da`,
		"a/other.json":  `{"hello":1}`,
		"a/spaced.json": "{\n  \"data\": {},\n  \"version\": 7}",
		"b/newer.json":  `{"version":9,"data":{"Name":"x"}}`,
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700),
			os.WriteFile(path, []byte(body), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ pattern, want string }{
		{"a/ours.json", ""}, {"a/other.json", ""}, {"none/*.json", ""},
		{"a/cut.json", "a/cut.json has format version 9"},
		{"a/spaced.json", "a/spaced.json has format version 7"},
		{"*/n*.json", "b/newer.json has format version 9 and was written by a newer version of Kuri; this one reads " +
			"1 to 2"},
	} {
		err := Newer(2, dir, c.pattern)
		if c.want == "" && err != nil || c.want != "" &&
			(!errors.Is(err, fault.Precondition) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.pattern, err)
		}
	}
	var v sample
	if err := Read(filepath.Join(dir, "b/newer.json"), 2, &v); !errors.Is(err, fault.Precondition) {
		t.Errorf("%v", err)
	}
}

// Sweep removes the temporary file of a killed writer, but no file of a living writer and no other
// file.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	living := exec.Command("sleep", "1000")
	if err := living.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { living.Process.Kill(); living.Wait() }()
	left := []string{
		fmt.Sprintf(".a.json.%d-17", dead.Process.Pid),
		fmt.Sprintf(".podcidr.%d-17", dead.Process.Pid),
		fmt.Sprintf(".a.json.%d-18", os.Getpid()), // of an earlier process with our pid
	}
	stay := []string{"a.json", "a.json.damaged", ".hidden", ".a-b", fmt.Sprintf("a.json.%d-17", dead.Process.Pid),
		fmt.Sprintf(".a.json.%d-19", living.Process.Pid)}
	for _, name := range append(left, stay...) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	Sweep(dir)
	Sweep(filepath.Join(dir, "not", "there"))
	for _, name := range left {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
	for _, name := range stay {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// Sweep recognises the temporary files of Write.
func TestSweepRecognisesTemporaryFilesOfWrite(t *testing.T) {
	dir := t.TempDir()
	_, fd, err := create(filepath.Join(dir, "r.json"))
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	Sweep(dir)
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// A record that cannot be written leaves no temporary file and an error with the cause.
func TestWriteThatFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.json")
	if err := os.MkdirAll(filepath.Join(path, "sub"), 0o700); err != nil { // nothing can be renamed over it
		t.Fatal(err)
	}
	if err := Write(path, 1, sample{"a"}); !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EEXIST) {
		t.Errorf("over a directory: %v", err)
	}
	if err := Write(filepath.Join(dir, "none", "r.json"), 1, sample{"a"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a missing directory: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left in the directory: %v", left)
	}
}

func BenchmarkWrite(b *testing.B) {
	path := filepath.Join(b.TempDir(), "r.json")
	for b.Loop() {
		if err := Write(path, 1, sample{"a"}); err != nil {
			b.Fatal(err)
		}
	}
}
