package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

type checkReport struct {
	Checks []struct{ Group, Name, State, Detail, Fails, Mend string }
	// Summary counts the checks of each state.
	Summary map[string]int
}

func (c checkReport) state(group, name string) string {
	for _, r := range c.Checks {
		if r.Group == group && r.Name == name {
			return r.State
		}
	}
	return ""
}

// kuri check reports what kurid reports about the node and examines kurid's directories. Its exit
// code is that of the worst line.
func TestCheckNode(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	out, stderr, code := d.Kuri(t, "check", "-o", "json")
	var got checkReport
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s%s", err, out, stderr)
	}
	want := 0
	switch {
	case got.Summary["missing"] > 0:
		want = 2
	case got.Summary["limited"] > 0:
		want = 1
	}
	if code != want || got.Summary["missing"] != 0 {
		t.Errorf("exit code %d, want %d; %v\n%s", code, want, got.Summary, out)
	}
	if !strings.Contains(out, d.Root+" on ") || !strings.Contains(out, "everybody can pass to "+d.State) &&
		got.state("storage", "state's mode") == "ok" {
		t.Errorf("it did not look at the daemon's directories:\n%s", out)
	}
	st, err := d.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	features := st.RuntimeHandlers[0].Features
	for _, row := range []struct {
		group, name string
		kurid       bool
	}{
		{"kernel", "mount_setattr", features.RecursiveReadOnlyMounts}, {"runtime", "user namespaces",
			features.UserNamespaces},
		{"runtime", "RuntimeReady", true}, {"runtime", "NetworkReady", true}, {"runtime", "version", true}, {"storage",
			"overlayfs", true},
	} {
		if state := got.state(row.group, row.name); (state == "ok") != row.kurid {
			t.Errorf("%s, %s: %q, and kurid says %t", row.group, row.name, state, row.kurid)
		}
	}
	quiet, _, _ := d.Kuri(t, "check", "-q")
	if strings.Contains(quiet, "\n  ok ") || !strings.Contains(quiet, " ok, ") {
		t.Errorf("-q has lines that are ok:\n%s", quiet)
	}
}

// kuri check works without an installed runtime, and as a user other than root.
func TestCheckNodeWithoutRuntime(t *testing.T) {
	dir := t.TempDir()
	for _, up := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	kuri := filepath.Join(dir, "kuri") // in a place that every user can reach
	body, err := os.ReadFile(harness.Bin("kuri"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kuri, body, 0o755); err != nil {
		t.Fatal(err)
	}
	command := []string{kuri, "-r", filepath.Join(dir, "none.sock"), "check", "-o", "json", "--root",
		filepath.Join(dir, "root")}
	setpriv, err := exec.LookPath("setpriv")
	for _, by := range [][]string{nil, {setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"}} {
		if len(by) > 0 && err != nil {
			t.Skip("SKIP: no setpriv(1)")
		}
		full := slices.Concat(by, command)
		var got checkReport
		cmd := exec.Command(full[0], full[1:]...)
		temporary := filepath.Join(dir, fmt.Sprint("tmp", len(by)))
		if err := errors.Join(os.Mkdir(temporary, 0o700), os.Chown(temporary, 65534, 65534)); err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(os.Environ(), "TMPDIR="+temporary)
		out, _ := cmd.Output()
		if err := json.Unmarshal(out, &got); err != nil {
			t.Fatalf("%v: %v: %s", full, err, out)
		}
		if got.state("runtime", "socket") != "unknown" || got.state("kernel", "openat2") != "ok" ||
			cmd.ProcessState.ExitCode() > 1 {
			t.Errorf("%v: exit code %d, %s", full, cmd.ProcessState.ExitCode(), out)
		}
		if as := got.state("security", "privileges"); (as == "ok") != (len(by) == 0) {
			t.Errorf("%v: privileges are %s", full, as)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".kuri-check-*")); len(left) > 0 {
			t.Errorf("left: %s", left)
		}
		if left, err := os.ReadDir(temporary); len(left) > 0 || err != nil {
			t.Errorf("%v: left in the directory for temporary files: %v, %v", full, left, err)
		}
	}
}

// If the node lacks something required, the exit code is 2.
func TestCheckNodeMissing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "1.conflist"), []byte(`{"name": "pods", "plugins": [{"type": "nowhere"}]}`),
		0o644); err != nil {
		t.Fatal(err)
	}
	d := harness.Start(t, harness.Options{NoPods: true, Config: "[network]\nuse = \"cni\"\ncni_conf_dir = \"" + dir +
		"\"\n"})
	out, _, code := d.Kuri(t, "check", "-q")
	if code != 2 || !strings.Contains(out, "needs nowhere, which is not in") ||
		!strings.Contains(out, "mend:  install the network add-on") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
}
