package critest

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"

	"github.com/kuri-cri/kuri/test/harness"
)

// changes are applied to a copy of the suite, by file. Each pattern must match at least once; every
// match is replaced.
var changes = []struct{ file, pattern, with string }{
	{"pkg/validate/security_context_linux.go", `net\.Listen\("tcp", ":0"\)`, `net.Listen("tcp", "127.0.0.1:0")`},
	{"pkg/validate/consts.go", `(test-image-digest@sha256:)9700f9a2[0-9a-f]{56}`, ``}, // with: $1 and the digest
}

// cacheDir returns the directory of build results.
func cacheDir() string {
	if dir := os.Getenv("KURI_CACHE"); dir != "" {
		return filepath.Join(dir, "critest")
	}
	return filepath.Join(harness.Repository(), ".cache", "critest")
}

// Busybox returns the path of a static busybox for images. It builds it unless it is in the cache.
func Busybox() (string, error) {
	script := filepath.Join(harness.Repository(), "test", "critest", "build-busybox")
	text, err := os.ReadFile(script)
	if err != nil {
		return "", err
	}
	path := filepath.Join(cacheDir(), fmt.Sprintf("busybox-%x", sha256.Sum256(text))[:24])
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fmt.Println("building busybox for test images, once")
	return path, run("", script, path)
}

// buildSuite returns the path of the suite, with the digest (64 hex digits) of the image that it
// pulls by digest. It builds the suite unless it is in the cache.
func buildSuite(digest string) (string, error) {
	tools := filepath.Join(harness.Repository(), "test", "critest", "tools")
	sum, err := os.ReadFile(filepath.Join(tools, "go.sum"))
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Appendf(sum, "%s %s %v", digest, runtime.Version(), changes))
	path := filepath.Join(cacheDir(), fmt.Sprintf("critest-%x", key)[:24])
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fmt.Println("building critest, once")

	scratch, err := os.MkdirTemp("", "kuri-critest-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(scratch)
	if err := copySuite(tools, scratch, digest); err != nil {
		return "", err
	}
	if err := run(scratch, "go", "mod", "edit", "-replace", "sigs.k8s.io/cri-tools=./src"); err != nil {
		return "", err
	}
	if err := os.MkdirAll(cacheDir(), 0o755); err != nil {
		return "", err
	}
	if err := run(scratch, "go", "test", "-c", "-trimpath", "-o", path+".new",
		"sigs.k8s.io/cri-tools/cmd/critest"); err != nil {
		return "", err
	}
	return path, os.Rename(path+".new", path)
}

// copySuite copies the tools module to dir, and the changed suite to src below dir.
func copySuite(tools, dir, digest string) error {
	if err := os.CopyFS(dir, os.DirFS(tools)); err != nil {
		return err
	}
	cmd := exec.Command("go", "mod", "download", "-json", "sigs.k8s.io/cri-tools")
	cmd.Dir = tools
	said, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("download cri-tools: %w\n%s", err, said)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(said, &module); err != nil {
		return fmt.Errorf("download cri-tools: %w", err)
	}
	src := filepath.Join(dir, "src")
	if err := os.CopyFS(src, os.DirFS(module.Dir)); err != nil {
		return err
	}
	for _, c := range changes {
		file := filepath.Join(src, c.file)
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		with := c.with
		if with == "" {
			with = "${1}" + digest
		}
		changed := regexp.MustCompile(c.pattern).ReplaceAll(text, []byte(with))
		if bytes.Equal(changed, text) {
			return fmt.Errorf("%s has nothing that matches %s; is it another version of cri-tools?", c.file, c.pattern)
		}
		if err := os.Chmod(file, 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(file, changed, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// run runs a program in dir. Its error includes the program's output.
func run(dir, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, said)
	}
	return nil
}
