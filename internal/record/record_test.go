package record

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

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

func TestWhatCannotBeReadIsNamedAndSetAside(t *testing.T) {
	dir := t.TempDir()
	for name, body := range map[string]string{
		"cut.json":   `{"version":1,"data":{"Na`,
		"newer.json": `{"version":9,"data":{}}`,
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
