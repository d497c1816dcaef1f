package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestSavedImageIsTheSame(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	base := layerOf(t, file{"gone", "x"}, file{"base", "base"})
	home := layerOfTar(t, tarWith(t, &tar.Header{Name: "home/", Typeflag: tar.TypeDir, Mode: 0o711}))
	top := layerOf(t, file{".wh.gone", ""}, file{"home/own", "own"})
	s := openStore(t, "")
	one, two := h.push("app:1", imageOf(t, "1", base, home, top)), h.push("app:2", imageOf(t, "2", base))
	img := pull(t, s, one)
	pull(t, s, two)

	var saved bytes.Buffer
	if err := s.Save(t.Context(), &saved, one, two); err != nil {
		t.Fatal(err)
	}
	nothingHalfMade(t, s)
	other := openStore(t, "")
	loaded, err := other.Load(t.Context(), &saved, "")
	if err != nil || len(loaded) != 2 {
		t.Fatalf("%v, %v", loaded, err)
	}
	got, err := other.Get(one)
	if err != nil {
		t.Fatal(err)
	}
	if got.Config.Cmd[0] != "1" || got.Config.User != img.Config.User || len(got.DiffIDs) != len(img.DiffIDs) {
		t.Errorf("%+v, was %+v", got, img)
	}
	for name, want := range map[string]string{"base": "base", "home/own": "own"} {
		if is := fileIn(t, other, got, name); is != want {
			t.Errorf("%s: %q", name, is)
		}
	}
	if found := check(t, other, false); len(found) != 0 {
		t.Errorf("%v", found)
	}
	if err := s.Save(t.Context(), &saved, "nowhere"); !errors.Is(err, fault.NotFound) {
		t.Errorf("%v", err)
	}
}
