package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var day = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

// repository makes a tree with a changelog and files of changes, and returns its root.
func repository(t *testing.T, log string, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "changelog", "unreleased")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "CHANGELOG.md"), []byte(log), 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

// The files of this repository are as they must be, and CHANGELOG.md has no change that belongs in one.
func TestThisRepository(t *testing.T) {
	if err := run([]string{"check"}, "..", day); err != nil {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	const log = "# Changelog\n\n## 0.2.0, 1 May 2026\n\n- first\n"
	tests := []struct{ file, text, want string }{
		{"added-image-lz4.md", "Layers in lz4\nare unpacked.\n", ""},
		{"fixed-image-lz4.md", "Layers in lz4 were refused (since 0.2.0)\n", ""},
		{"fixed-image-lz4.md", "Layers in lz4 were refused.\n", "first release that had the bug"},
		{"fixed-image-lz4.md", "Layers in lz4 were refused (since 0.1.7)\n", "no release 0.1.7"},
		{"added-image-lz4.md", "\n", "is empty"},
		{"added-image-lz4.md", "Layers in lz4 are unpacked", "full stop"},
		{"added-image-lz4.md", "One.\n\nTwo.\n", "several paragraphs"},
		{"added-image-lz4.md", "- Layers in lz4 are unpacked.\n", "a heading or a list"},
		{"improved-image-lz4.md", "Faster.\n", "KIND one of added, changed, removed, security, fixed"},
		{"added.md", "Something.\n", "KIND-AREA-WORDS.md"},
		{"added-Image-lz4.md", "Something.\n", "KIND-AREA-WORDS.md"},
	}
	for _, tt := range tests {
		err := run([]string{"check"}, repository(t, log, map[string]string{tt.file: tt.text}), day)
		if got := errorText(err); tt.want == "" && err != nil || !strings.Contains(got, tt.want) {
			t.Errorf("%s %q: %q, want %q", tt.file, tt.text, got, tt.want)
		}
	}
	err := run([]string{"check"}, repository(t, "# Changelog\n\n## Unreleased\n\n- A line of its own.\n", nil), day)
	if !strings.Contains(errorText(err), "put it in a file") {
		t.Errorf("a change in CHANGELOG.md itself: %v", err)
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestRelease(t *testing.T) {
	root := repository(t, "# Changelog\n\nWords.\n", map[string]string{
		"README.md":          "How to write one.\n",
		"summary.md":         "The first release.\n",
		"added-run-b.md":     "B\nin two lines.\n",
		"added-image-a.md":   "A.\n",
		"security-run-c.md":  "C.\n",
		"changed-network.md": "",
	})
	if err := run([]string{"release", "0.2.0"}, root, day); err == nil {
		t.Fatal("a section is made although a file is wrong")
	}
	os.Remove(filepath.Join(root, "changelog/unreleased/changed-network.md"))
	steps := []struct {
		version string
		files   map[string]string
		want    string
	}{
		{"0.2.0", nil, `# Changelog

Words.

## 0.2.0, 30 November 2026

The first release.

### Added

- A.
- B
  in two lines.

### Security

- C.
`},
		{"0.2.0", map[string]string{"added-run-d.md": "D.\n", "changed-run-e.md": "E.\n"}, `# Changelog

Words.

## 0.2.0, 30 November 2026

The first release.

### Added

- A.
- B
  in two lines.
- D.

### Changed

- E.

### Security

- C.
`},
		{"0.10.0", map[string]string{"fixed-run-f.md": "F (since 0.2.0)\n"}, `# Changelog

Words.

## 0.10.0, 30 November 2026

### Fixed

- F (since 0.2.0)

## 0.2.0, 30 November 2026
`},
	}
	for _, step := range steps {
		for name, text := range step.files {
			if err := os.WriteFile(filepath.Join(root, "changelog/unreleased", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := run([]string{"release", step.version}, root, day); err != nil {
			t.Fatal(err)
		}
		body, err := os.ReadFile(filepath.Join(root, "CHANGELOG.md"))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(body); !strings.HasPrefix(got, step.want) || step.version == "0.2.0" && got != step.want {
			t.Errorf("%s:\n%s\nwant\n%s", step.version, got, step.want)
		}
		left, err := os.ReadDir(filepath.Join(root, "changelog/unreleased"))
		if err != nil || len(left) != 1 || left[0].Name() != "README.md" {
			t.Errorf("left: %v, %v", left, err)
		}
	}
	for _, version := range []string{"0.9.0", "1", "v1.0.0", "1.0.0"} { // lower, malformed twice, and without changes
		if err := run([]string{"release", version}, root, day); err == nil {
			t.Errorf("a section for %s is made", version)
		}
	}
}
