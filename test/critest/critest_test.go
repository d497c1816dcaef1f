package critest

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kuri-cri/kuri/test/harness"
)

// TestMain builds what is missing outside of the cell, where modules and packages can be had.
func TestMain(m *testing.M) {
	if os.Getuid() == 0 && !harness.InCell() {
		if _, _, err := build(); err != nil {
			fmt.Fprintln(os.Stderr, "critest:", err)
			os.Exit(1)
		}
	}
	harness.Main(m)
}

// build returns the path of the suite and the images for it.
func build() (suite string, content map[string]remote.Taggable, err error) {
	busybox, err := buildBusybox()
	if err != nil {
		return "", nil, err
	}
	if content, err = images(busybox); err != nil {
		return "", nil, err
	}
	digest, err := content[digestName].(v1.Image).Digest()
	if err != nil {
		return "", nil, err
	}
	suite, err = buildSuite(digest.Hex)
	return suite, content, err
}

func TestCRI(t *testing.T) {
	certs := t.TempDir()
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[image]\ncerts_dirs = [%q]\n", certs)})
	suite, content, err := build()
	if err != nil {
		t.Fatal(err)
	}
	for name, img := range content {
		_, repository, _ := strings.Cut(name, "/")
		d.Registry.Push(t, repository, img)
	}
	for _, host := range registryHosts {
		harness.Write(t, certs, host+"/hosts.toml",
			fmt.Sprintf("server = \"http://%s\"\n\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", d.Registry.Host, d.Registry.Host))
	}

	report := filepath.Join(t.TempDir(), "junit.xml")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, suite, "-runtime-endpoint", "unix://"+d.Socket, "-image-endpoint", "unix://"+d.ImageSocket,
		"-ginkgo.no-color", "-ginkgo.succinct", "-ginkgo.junit-report", report, "-ginkgo.focus", os.Getenv("CRITEST_FOCUS"))
	cmd.Dir = t.TempDir()
	output, runErr := cmd.CombinedOutput()

	specs, err := readReport(report)
	if err != nil {
		t.Fatalf("critest left no report (%v): %v\n%s", runErr, err, output)
	}
	want, err := readExpected("expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	compare(t, want, specs, os.Getenv("CRITEST_FOCUS"))
}

// compare makes a subtest of each spec that has focus in its name, which is part of every name when it is "".
func compare(t *testing.T, want map[string]expectation, got []spec, focus string) {
	ran := map[string]bool{}
	for _, s := range got {
		if s.status == "skipped" && !strings.Contains(s.name, focus) {
			continue
		}
		ran[s.name] = true
		t.Run(s.name, func(t *testing.T) {
			w, listed := want[s.name]
			switch {
			case !listed:
				t.Errorf("the spec %s, and expected.txt does not list it", s.status)
			case w.pass && s.status != "passed":
				t.Errorf("the spec %s, and it must pass\n%s", s.status, s.output)
			case !w.pass && s.status == "passed":
				t.Logf("the spec passes; expected.txt may ask for it (it says: %s)", w.reason)
			case !w.pass:
				t.Skip(w.reason)
			}
		})
	}
	for name := range want {
		if !ran[name] && strings.Contains(name, focus) {
			t.Errorf("expected.txt lists %q, and there is no such spec in the report", name)
		}
	}
}

// spec is one spec of a report.
type spec struct{ name, status, output string }

// readReport reads the specs of a JUnit report as ginkgo writes it. Setup that failed counts as a spec.
func readReport(path string) ([]spec, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var report struct {
		Suites []struct {
			Cases []struct {
				Name    string `xml:"name,attr"`
				Status  string `xml:"status,attr"`
				Output  string `xml:"system-err"`
				Failure struct {
					Text string `xml:",chardata"`
				} `xml:"failure"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(text, &report); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var out []spec
	for _, suite := range report.Suites {
		for _, c := range suite.Cases {
			name, isSpec := strings.CutPrefix(c.Name, "[It] [k8s.io] ")
			if isSpec || c.Status != "passed" {
				out = append(out, spec{name: name, status: c.Status, output: c.Output + c.Failure.Text})
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s has no spec", path)
	}
	return out, nil
}

// expectation is a line of expected.txt.
type expectation struct {
	pass   bool
	reason string // why not, when it need not pass
}

// hasAppArmor asks where critest asks too.
func hasAppArmor() bool {
	on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(on), "Y")
}

func hasSELinux() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}

func readExpected(path string) (map[string]expectation, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out := map[string]expectation{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		verb, rest, _ := strings.Cut(line, " ")
		name, reason, hasReason := strings.Cut(rest, " # ")
		switch {
		case line == "" || verb == "#":
			continue
		case verb == "pass" && rest != "":
			out[rest] = expectation{pass: true}
		case verb == "apparmor" && rest != "":
			out[rest] = expectation{pass: hasAppArmor(), reason: "AppArmor is not enabled in this kernel; make test-vm has it"}
		case verb == "selinux" && rest != "":
			if hasSELinux() { // there is no such spec elsewhere
				out[rest] = expectation{pass: true}
			}
		case verb == "skip" && hasReason && reason != "":
			out[name] = expectation{reason: reason}
		default:
			return nil, fmt.Errorf("%s: %q is none of \"pass NAME\", \"apparmor NAME\", \"selinux NAME\" and \"skip NAME # reason\"", path, line)
		}
	}
	return out, nil
}
