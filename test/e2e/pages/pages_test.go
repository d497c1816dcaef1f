package pages

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// block is a fenced block of a page.
type block struct {
	line int    // of its first line of text
	info string // the text after the opening fence
	text string
}

// page returns the lines of a Markdown file and its fenced blocks.
func page(t *testing.T, path string) (lines []string, blocks []block) {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var open *block
	for i, line := range strings.Split(string(body), "\n") {
		info, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && open == nil:
			open = &block{line: i + 2, info: info}
		case fence:
			blocks, open = append(blocks, *open), nil
		case open != nil:
			open.text += line + "\n"
		default:
			lines = append(lines, line)
		}
	}
	if open != nil {
		t.Errorf("%s:%d: the block is not closed", path, open.line)
	}
	return lines, blocks
}

func docs(t *testing.T) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(harness.Repository(), "docs", "*.md"))
	if err != nil || len(paths) < 10 {
		t.Fatalf("the pages: %v %v", paths, err)
	}
	return paths
}

// TestCommands runs the blocks marked "sh run".
func TestCommands(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it installs the programs and starts the daemon, in a cell")
	}
	archive := busybox(t)
	for _, path := range docs(t) {
		var script strings.Builder
		_, blocks := page(t, path)
		for _, b := range blocks {
			if b.info == "sh run" {
				fmt.Fprintf(&script, ": '%s:%d'\n%s", filepath.Base(path), b.line, b.text)
			}
		}
		if script.Len() == 0 {
			continue
		}
		t.Run(strings.TrimSuffix(filepath.Base(path), ".md"), func(t *testing.T) { run(t, script.String(), archive) })
	}
}

// busybox writes an archive of an image with a shell, localhost/busybox:1.
func busybox(t *testing.T) string {
	t.Helper()
	files, err := image.Busybox("/bin/busybox")
	if err != nil {
		t.Fatalf("%v (make test-deps)", err)
	}
	img, err := image.New(v1.Config{Cmd: []string{"sh"}}, files...)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("localhost/busybox:1")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "busybox.tar")
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs a page's commands in a cell of their own, after testdata/prepare.
func run(t *testing.T, script, archive string) {
	t.Helper()
	dir := t.TempDir()
	file := harness.Write(t, dir, "page", script)
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patient(5*time.Minute))
	defer cancel()
	root := harness.Repository()
	cmd := exec.CommandContext(ctx, filepath.Join(root, "bench", "cell"),
		filepath.Join(root, "test", "e2e", "pages", "testdata", "prepare"), file, archive)
	cmd.Dir = root
	out, err := os.Create(filepath.Join(dir, "output")) // a file: open descriptors delay no end
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // the cell cleans up
	cmd.WaitDelay = 30 * time.Second
	if err := cmd.Run(); err != nil {
		said, _ := os.ReadFile(out.Name())
		t.Errorf("%v\n%s", err, said)
	}
}

// TestMarks fails for a block of shell that is neither run nor looked up.
func TestMarks(t *testing.T) {
	var ran int
	for _, path := range docs(t) {
		_, blocks := page(t, path)
		for _, b := range blocks {
			if kind, _, _ := strings.Cut(b.info, " "); !slices.Contains([]string{"sh", "bash", "shell", "console"}, kind) {
				continue
			}
			switch b.info {
			case "sh run":
				ran++
			case "sh node":
			default:
				t.Errorf("%s:%d: mark the block as \"sh run\" or \"sh node\", see test/e2e/pages/doc.go", filepath.Base(path),
					b.line)
			}
		}
	}
	if ran == 0 {
		t.Error("no page has a block that is run")
	}
}

// TestFlags looks up the verbs and flags of kuri and kurid in blocks that need more than a node.
func TestFlags(t *testing.T) {
	for _, path := range docs(t) {
		_, blocks := page(t, path)
		for _, b := range blocks {
			if b.info != "sh node" {
				continue
			}
			for i, line := range strings.Split(b.text, "\n") {
				if words := strings.Fields(line); len(words) > 0 && (words[0] == "kuri" || words[0] == "kurid") {
					if err := known(words); err != nil {
						t.Errorf("%s:%d: %s: %v", filepath.Base(path), b.line+i, line, err)
					}
				}
			}
		}
	}
}

// known returns an error for a verb or flag that the program's help does not have.
func known(words []string) error {
	args := []string{"--help"}
	for i := 1; i < len(words); i++ {
		if words[i] == "-r" || words[i] == "--runtime-endpoint" {
			i++
		} else if !strings.HasPrefix(words[i], "-") && words[0] == "kuri" {
			args = []string{words[i], "--help"}
			break
		}
	}
	help, err := exec.Command(harness.Bin(words[0]), args...).CombinedOutput()
	if err != nil && words[0] == "kuri" {
		return fmt.Errorf("%s %s: %w: %s", words[0], strings.Join(args, " "), err, help)
	}
	for _, w := range words[1:] {
		flag, _, _ := strings.Cut(w, "=")
		if strings.HasPrefix(flag, "-") && !regexp.MustCompile(`(^|[\s,])`+regexp.QuoteMeta(flag)+`([\s,=]|$)`).Match(help) {
			return fmt.Errorf("its help has no %s", flag)
		}
	}
	return nil
}

var (
	link  = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	punct = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestLinks follows the relative links of all pages and their anchors.
func TestLinks(t *testing.T) {
	root := harness.Repository()
	paths := append(docs(t), filepath.Join(root, "README.md"), filepath.Join(root, "CONTRIBUTING.md"),
		filepath.Join(root, "SECURITY.md"))
	for _, path := range paths {
		lines, _ := page(t, path)
		for _, m := range link.FindAllStringSubmatch(strings.Join(lines, "\n"), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target, anchor, _ := strings.Cut(m[1], "#")
			file := path
			if target != "" {
				file = filepath.Join(filepath.Dir(path), target)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: the link %s leads nowhere", filepath.Base(path), m[1])
			} else if anchor != "" && !slices.Contains(anchors(t, file), anchor) {
				t.Errorf("%s: the link %s: there is no such heading", filepath.Base(path), m[1])
			}
		}
	}
}

// anchors returns the anchors of a page's headings as GitHub generates them.
func anchors(t *testing.T, path string) (out []string) {
	t.Helper()
	lines, _ := page(t, path)
	for _, line := range lines {
		if heading, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			out = append(out, strings.ReplaceAll(punct.ReplaceAllString(strings.ToLower(heading), ""), " ", "-"))
		}
	}
	return out
}
