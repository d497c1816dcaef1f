package run

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/poddir"
)

func TestManifestFromStandardInput(t *testing.T) {
	c, _, errs := clitest.New(nil)
	c.In = strings.NewReader("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {restartPolicy: Always, containers: [{name: c, image: i}]}\n")
	pods, err := readManifest(t.Context(), c, "-", &runOptions{name: "b"})
	if err != nil || len(pods) != 1 || pods[0].Name() != "b" {
		t.Fatalf("%v %v", pods, err)
	}
	if want := "kuri: pod b: spec.restartPolicy is ignored: a container that exits is not started again\n"; errs.String() != want {
		t.Errorf("says %q", errs)
	}
	if _, err := readManifest(t.Context(), c, filepath.Join(t.TempDir(), "none"), &runOptions{}); !errors.Is(err,
		fs.ErrNotExist) {
		t.Error(err)
	}
	if uid := newUID(); !poddir.UIDForm.MatchString(uid) || uid == newUID() {
		t.Errorf("uid %q", uid)
	}
}
