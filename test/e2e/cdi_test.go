package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

func TestCDI(t *testing.T) {
	dir := t.TempDir()
	s := newShell(t, harness.Options{Config: "[pod]\ncdi_dirs = [\"" + dir + "\"]"})
	asking := func(names ...string) func(*container, *security) {
		return func(c *container, _ *security) {
			for _, n := range names {
				c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: n})
			}
		}
	}
	harness.WantError(t, s.refuses(t, asking("kuri.test/thing=one"), "true"), codes.NotFound, "kuri.test/thing=one", dir)

	// Written while the daemon runs.
	harness.Write(t, dir, "thing.json", `{"cdiVersion": "0.6.0", "kind": "kuri.test/thing", "devices": [
		{"name": "one", "containerEdits": {
			"env": ["THING=one"],
			"deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/zero", "permissions": "rw"}],
			"mounts": [{"hostPath": "/etc/hostname", "containerPath": "/thing", "options": ["ro", "bind"]}]
		}},
		{"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-device"}]}}]}`)
	host, err := os.ReadFile("/etc/hostname")
	if err != nil {
		t.Skip("SKIP: no /etc/hostname to mount")
	}
	const look = "echo $THING; head -c 3 /dev/thing | od -An -tx1; cat /thing"
	want := "one\n 00 00 00\n" + string(host)
	if out := s.says(t, asking("kuri.test/thing=one"), "sh", "-c", look); out != want {
		t.Errorf("by the field: %q, want %q", out, want)
	}
	annotated := func(c *container, _ *security) {
		c.Annotations = map[string]string{"cdi.k8s.io/plugin_1": "kuri.test/thing=one"}
	}
	if out := s.says(t, annotated, "sh", "-c", look); out != want {
		t.Errorf("by annotation: %q, want %q", out, want)
	}
	harness.WantError(t, s.refuses(t, asking("kuri.test/thing=gone"), "true"), codes.FailedPrecondition, "no-such-device")
	harness.WantError(t, s.refuses(t, asking("thing"), "true"), codes.InvalidArgument, "CDI_devices")

	// The error names an unreadable specification.
	if err := os.WriteFile(filepath.Join(dir, "bad.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	harness.WantError(t, s.refuses(t, asking("kuri.test/other=one"), "true"), codes.NotFound, "bad.json")
}
