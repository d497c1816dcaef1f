package critest

import (
	"context"
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
	"github.com/kuri-cri/kuri/test/suite"
)

// TestMain builds missing programs outside of the cell, where modules and packages can be downloaded.
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
func build() (program string, content map[string]remote.Taggable, err error) {
	busybox, err := Busybox()
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
	program, err = buildSuite(digest.Hex)
	return program, content, err
}

func TestCRI(t *testing.T) {
	certs := t.TempDir()
	d := harness.Start(t, harness.Options{Config: fmt.Sprintf("[image]\ncerts_dirs = [%q]\n", certs)})
	program, content, err := build()
	if err != nil {
		t.Fatal(err)
	}
	for name, img := range content {
		_, repository, _ := strings.Cut(name, "/")
		d.Registry.Push(t, repository, img)
	}
	for _, host := range registryHosts {
		harness.Write(t, certs, host+"/hosts.toml",
			fmt.Sprintf("server = \"http://%s\"\n\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
				d.Registry.Host, d.Registry.Host))
	}

	report := filepath.Join(t.TempDir(), "junit.xml")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-runtime-endpoint", "unix://"+d.Socket, "-image-endpoint", "unix://"+
		d.ImageSocket,
		"-ginkgo.no-color", "-ginkgo.succinct", "-ginkgo.junit-report", report, "-ginkgo.focus", os.Getenv("CRITEST_FOCUS"))
	cmd.Dir = t.TempDir()
	output, runErr := cmd.CombinedOutput()

	specs, err := suite.ReadReport(report, "[It] [k8s.io] ")
	if err != nil {
		t.Fatalf("critest left no report (%v): %v\n%s", runErr, err, output)
	}
	want, err := suite.ReadExpected("expected.txt", map[string]suite.Condition{
		"apparmor": {Holds: hasAppArmor(), Reason: "AppArmor is not enabled in this kernel; make test-vm has it"},
		"selinux":  {Holds: hasSELinux()}, // without SELinux the suite has no such spec
	})
	if err != nil {
		t.Fatal(err)
	}
	suite.Compare(t, want, specs, os.Getenv("CRITEST_FOCUS"))
}

// hasAppArmor reports whether AppArmor is enabled, by the same check as critest.
func hasAppArmor() bool {
	on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && strings.HasPrefix(string(on), "Y")
}

func hasSELinux() bool {
	_, err := os.Stat("/sys/fs/selinux/enforce")
	return err == nil
}
