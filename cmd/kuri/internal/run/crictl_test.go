package run

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

// A file that is not a message of the CRI is refused with a short reason, without a copy of its text.
func TestReadMessage(t *testing.T) {
	c, _, _ := clitest.New(nil)
	for content, want := range map[string]string{
		"metadata: {name: a}":                   "",
		`{"metadata": {"name": "a"}}`:           "",
		"root:x:0:0\nsecret:x:1:1\n":            "expected an object",
		"- metadata":                            "expected an object",
		"":                                      "expected an object",
		"{a: [":                                 "neither JSON nor YAML",
		"nope: 1":                               `it has no field "nope"`,
		"apiVersion: v1\nmetadata: {name: a}\n": "which kuri run takes",
	} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		config := &runtimeapi.PodSandboxConfig{}
		err := readMessage(t.Context(), c, path, config)
		switch {
		case want == "" && (err != nil || config.Metadata.GetName() != "a"):
			t.Errorf("%q: %v, %v", content, config, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret")):
			t.Errorf("%q: %v, want one with %q", content, err, want)
		}
	}
}
