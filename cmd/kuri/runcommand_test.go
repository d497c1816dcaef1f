package main

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

func TestManifestFromStandardInput(t *testing.T) {
	c, _, errs := newCLI(nil)
	c.in = strings.NewReader("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {restartPolicy: Always, containers: [{name: c, image: i}]}\n")
	pods, err := c.manifest(t.Context(), "-", &runOptions{name: "b"})
	if err != nil || len(pods) != 1 || pods[0].Name() != "b" {
		t.Fatalf("%v %v", pods, err)
	}
	if want := "kuri: pod b: spec.restartPolicy is ignored: a container that exits is not started again\n"; errs.String() != want {
		t.Errorf("says %q", errs)
	}
	if _, err := c.manifest(t.Context(), filepath.Join(t.TempDir(), "none"), &runOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if uid := newUID(); !uidForm.MatchString(uid) || uid == newUID() {
		t.Errorf("uid %q", uid)
	}
}
