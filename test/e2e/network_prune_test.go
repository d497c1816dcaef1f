package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// The built-in network is removed from the node on request: by the daemon, or by kurid network
// prune if none runs.
func TestNetworkPrune(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	// there lists the parts of Kuri's network that exist: the link and the table.
	there := func() string {
		t.Helper()
		links, err := exec.Command("ip", "-o", "link", "show", "type", "bridge").CombinedOutput()
		if err != nil {
			t.Fatalf("ip: %v: %s", err, links)
		}
		tables, err := exec.Command("nft", "list", "tables").CombinedOutput()
		if err != nil {
			t.Skipf("nft: %v: %s (make test-deps)", err, tables)
		}
		var found []string
		if strings.Contains(string(links), "kuri0") {
			found = append(found, "link")
		}
		if strings.Contains(string(tables), "inet kuri-") {
			found = append(found, "table")
		}
		return strings.Join(found, " ")
	}
	mine := exec.Command("nft", "add", "table", "inet", "somebodys")
	if out, err := mine.CombinedOutput(); err != nil {
		t.Skipf("nft: %v: %s (make test-deps)", err, out)
	}
	defer exec.Command("nft", "delete", "table", "inet", "somebodys").Run()
	offline := []string{"network", "prune", "--config", filepath.Join(d.Dir, "config.toml")}
	pod := func(name string) string {
		resp, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod(name)})
		if err != nil {
			t.Fatal(err)
		}
		return resp.PodSandboxId
	}

	// While a pod uses the network nothing is removed, and the error names the pod.
	id := pod("user")
	if got := there(); got != "link table" {
		t.Fatalf("with a pod there is %q", got)
	}
	if _, errs, code := d.Kuri(t, "network", "prune"); code != 1 || !strings.Contains(errs, "/user") ||
		there() != "link table" {
		t.Errorf("with a pod: %d %s, there is %q", code, errs, there())
	}
	if said, code := harness.RunKurid(t, offline...); code != 1 || !strings.Contains(said, "a kurid serves") {
		t.Errorf("beside a daemon: %d %s", code, said)
	}

	// Without a pod it is removed at once, and the next pod restores it.
	d.RemovePod(t, id)
	if out, errs, code := d.Kuri(t, "network", "prune"); code != 0 || there() != "" {
		t.Errorf("without a pod: %d %s%s, there is %q", code, out, errs, there())
	}
	id = pod("next")
	if got := there(); got != "link table" {
		t.Errorf("with the next pod there is %q", got)
	}

	// With the daemon stopped and a pod present, the request is refused and the pod's network stays.
	d.Stop(t)
	if said, code := harness.RunKurid(t, offline...); code != 1 || !strings.Contains(said, "/next") ||
		there() != "link table" {
		t.Errorf("a pod and no daemon: %d %s, there is %q", code, said, there())
	}
	d.Continue(t)
	d.RemovePod(t, id)
	d.Stop(t)
	if said, code := harness.RunKurid(t, offline...); code != 0 || there() != "" {
		t.Errorf("no pod and no daemon: %d %s, there is %q", code, said, there())
	}
	if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "somebodys") {
		t.Errorf("somebody's table: %s %v", out, err)
	}
	d.Continue(t)
}
