package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	for names, want := range map[string]bool{
		"LICENSE":                  true,
		"LICENSE.md NOTICE":        true,
		"COPYING":                  true,
		"licence-MIT":              true,
		"NOTICE PATENTS README.md": false,
		"license_test.go":          false,
		"":                         false,
	} {
		dir := t.TempDir()
		for _, name := range strings.Fields(names) {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("text of "+name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := read(dir); (err == nil) != want {
			t.Errorf("%q: %v, %v", names, got, err)
		}
	}
}

func TestTextHasEachLicenceOnce(t *testing.T) {
	parts := []part{
		{name: "a", version: "v1", programs: []string{"kurid"}, licences: []licence{{"LICENSE", "same words\r\n"}}},
		{name: "b", version: "v2", programs: []string{"kuri"},
			licences: []licence{{"COPYING", "same words\n"}, {"NOTICE", "others"}}},
	}
	got := text(parts)
	if strings.Count(got, "same words") != 1 ||
		!strings.Contains(got, "a v1 (LICENSE; in kurid)\nb v2 (COPYING; in kuri)\n") || !strings.Contains(got, "others") {
		t.Error(got)
	}
}

func TestDescribe(t *testing.T) {
	b := describe([]part{{name: "a", version: "v1", purl: "pkg:golang/a@v1", sum: "h1:x", programs: []string{"kurid"}}},
		"0.2.0", time.Unix(1796000000, 0))
	if b.Metadata.Timestamp != "2026-11-30T00:53:20Z" || len(b.Components) != 1 ||
		b.Components[0].Properties[1].Value != "h1:x" {
		t.Errorf("%+v", b)
	}
}

// The C libraries of programs that were cross-built are those of the cross compiler's directory,
// under their names there.
func TestDebianOfACrossCompiler(t *testing.T) {
	cross := t.TempDir()
	for name, body := range map[string]string{
		"packages": "libc6-dev-arm64-cross 2.36-8cross1\nmusl-dev 1.2.3-1\nmusl 9\nlibseccomp-dev 2.5.4-1\n",
		"usr/share/doc/libc6-dev-arm64-cross/copyright": "of glibc",
		"usr/share/doc/musl-dev/copyright":              "of musl",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(cross, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(cross, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"libc6-dev": "pkg:deb/debian/libc6-dev-arm64-cross@2.36-8cross1 of glibc",
		"musl-dev":  "pkg:deb/debian/musl-dev@1.2.3-1 of musl",
	} {
		p, err := debian(name, cross)
		if err != nil || len(p.licences) != 1 || p.purl+" "+p.licences[0].text != want {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	if _, err := debian("libseccomp-dev", cross); err == nil {
		t.Error("a library without a licence is accepted")
	}
	if _, err := debian("libisl-dev", cross); err == nil {
		t.Error("a library that is not there is accepted")
	}
}
