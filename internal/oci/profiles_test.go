package oci

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// writeBundle writes a bundle that runtimes accept.
func writeBundle(t *testing.T, spec *specs.Spec) string {
	t.Helper()
	body, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	bundle := t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), body, 0o600); err != nil {
		t.Fatal(err)
	}
	return bundle
}

// A specification is the same with and without a shared profile, whatever it contains.
func TestSpecIsDecodedAsAWhole(t *testing.T) {
	files, err := filepath.Glob("../spec/testdata/golden/*.json")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d specifications, %v", len(files), err)
	}
	var l Libcontainer
	compared := 0
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var golden struct{ Spec *specs.Spec }
		if err := json.Unmarshal(body, &golden); err != nil || golden.Spec == nil {
			continue // a request that is refused
		}
		bundle, want := writeBundle(t, golden.Spec), golden.Spec
		for _, read := range []func(string) (*specs.Spec, error){ReadSpec, l.Spec, l.Spec} {
			got, err := read(bundle)
			if err != nil {
				t.Errorf("%s: %v", file, err)
			} else if !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %+v, not %+v", file, got, want)
			}
		}
		compared++
	}
	if compared < 10 {
		t.Errorf("only %d specifications were compared", compared)
	}
}

// Containers with the same profile share it in all its forms. One with another profile, even of the
// same length, does not.
func TestProfilesAreShared(t *testing.T) {
	bundle := func(action specs.LinuxSeccompAction, call string) string {
		return writeBundle(t, &specs.Spec{
			Root: &specs.Root{Path: "/rootfs"}, Process: &specs.Process{Args: []string{"true"}, Cwd: "/"},
			Linux: &specs.Linux{Seccomp: &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{call}, Action: action}},
			}},
		})
	}
	e := NewEmbedded(t.TempDir())
	defer e.Close()
	type forms struct {
		spec   *specs.LinuxSeccomp
		filter *filter
	}
	start := func(bundle string) forms {
		t.Helper()
		spec, err := e.Spec(bundle)
		if err != nil {
			t.Fatal(err)
		}
		t.Chdir(".") // configure changes it
		config, err := e.configure(t.Context(), "id", bundle, spec, false)
		if err != nil {
			t.Fatal(err)
		}
		f, err := e.filters.of(config.Seccomp)
		if err != nil {
			t.Fatal(err)
		}
		return forms{spec.Linux.Seccomp, f}
	}
	first := start(bundle(specs.ActErrno, "getuid"))
	if again := start(bundle(specs.ActErrno, "getuid")); again != first {
		t.Error("a second container has a profile of its own")
	}
	other := start(bundle(specs.ActErrno, "getgid"))
	if other.spec == first.spec || other.filter == first.filter {
		t.Error("containers with different profiles share one")
	}
	runtime.KeepAlive(first)
}
