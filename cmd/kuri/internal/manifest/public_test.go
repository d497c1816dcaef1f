package manifest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestPublicManifests has the kinds of manifests that are found in Kubernetes' documentation and examples. The
// comments at the beginning of each file are the expectations:
//
//	# runs POD      its only pod
//	# says TEXT     part of the warnings and notes
//	# has TEXT      part of the effective manifest
//	# refused TEXT  part of the error
//	# not TEXT      not part of the error
func TestPublicManifests(t *testing.T) {
	files, err := filepath.Glob("testdata/public/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			found := public(t, data)
			for line := range strings.Lines(string(data)) {
				comment, ok := strings.CutPrefix(strings.TrimSpace(line), "# ")
				if !ok {
					break
				}
				kind, text, _ := strings.Cut(comment, " ")
				switch is, has := found[kind]; {
				case kind == "not" && strings.Contains(found["refused"], text):
					t.Errorf("%q is in the error\n%s", text, found["refused"])
				case kind != "not" && (!has || !strings.Contains(is, text)):
					t.Errorf("%s %q, and it is\n%s", kind, text, found)
				}
			}
		})
	}
}

// public decodes a manifest and returns the texts that each kind of expectation is about.
func public(t *testing.T, data []byte) map[string]string {
	file, err := Decode(data, Options{})
	if err != nil {
		return map[string]string{"refused": err.Error()}
	}
	if len(file.Pods) != 1 {
		t.Fatalf("%d pods", len(file.Pods))
	}
	p := file.Pods[0]
	raw, err := yaml.Marshal(p.Effective())
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"runs": p.Name(), "says": strings.Join(append(file.Notes, p.Warnings...), "\n"), "has": string(raw),
	}
}
