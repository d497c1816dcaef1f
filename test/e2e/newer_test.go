package e2e

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// An older kurid refuses to start on records of a newer one, names the record, and changes nothing:
// containers keep running, and the newer kurid finds everything as it left it.
func TestNewerRecords(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	config := harness.Pod("app")
	pod := d.RunPod(t, config)
	id := d.Run(t, pod, harness.Container("app", image, "sleep", "7000"), config)
	ended := d.Run(t, pod, harness.Container("ended", image, "true"), config)
	d.WaitExit(t, ended)
	pid := firstPid(t, d, id)
	d.Stop(t)

	for _, pattern := range []string{
		"root/pods/*/pod.json", "root/pods/*/containers/*/container.json", "state/pods/*/pod.json",
		"state/pods/*/containers/*/container.json",
		"state/pods/*/containers/*/exit.json",
		"root/images/*.json", "root/layers/*/layer.json", "state/network/leases/*.json",
	} {
		paths, err := filepath.Glob(filepath.Join(d.Dir, pattern))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no record is at %s: %v", pattern, err)
		}
		path := paths[0]
		ours, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		newer := strings.Replace(string(ours), `{"version":`, `{"version":9`, 1)
		if err := os.WriteFile(path, []byte(newer), 0o600); err != nil {
			t.Fatal(err)
		}
		before := everything(t, d.Root, d.State)
		said, code := harness.RunKurid(t, "--config", filepath.Join(d.Dir, "config.toml"))
		for _, want := range []string{path, "has format version 9", "reads 1 to ", "start the newer version",
			"nothing was changed"} {
			if code == 0 || !strings.Contains(said, want) {
				t.Errorf("%s: kurid ends with %d and does not say %q: %s", pattern, code, want, said)
			}
		}
		after := everything(t, d.Root, d.State)
		for name := range maps.Keys(before) {
			if before[name] != after[name] {
				t.Errorf("%s: %s has changed", pattern, name)
			}
		}
		if len(after) != len(before) {
			t.Errorf("%s: %d files were there, and are %d", pattern, len(before), len(after))
		}
		if err := os.WriteFile(path, ours, 0o600); err != nil {
			t.Fatal(err)
		}
	}

	d.Continue(t)
	if st := d.ContainerStatus(t, id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING ||
		firstPid(t, d, id) != pid {
		t.Errorf("the container is told as %s", st.State)
	}
}

// everything returns a digest of each file below the directories, except locks and logs.
func everything(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if e.Type().IsRegular() && e.Name() != "kurid.lock" && !strings.HasSuffix(e.Name(), ".log") &&
				!strings.Contains(path, "/layers/") || e.Name() == "layer.json" {
				body, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				all[path] = fmt.Sprintf("%x", sha256.Sum256(body))
				return nil
			}
			all[path] = e.Type().String()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}
