package e2e

import (
	"os/exec"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// A firewall that cuts pods off from the outside is reported in the node's status, with the command
// that opens it, and the network is ready nevertheless.
func TestFirewallThatDrops(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent") // keep the machine's firewalld out of the test
	if out, err := exec.Command("nft",
		"table inet somebodys { chain through { type filter hook forward priority 0; policy drop; }; }").CombinedOutput(); err != nil {
		t.Skipf("SKIP: nft: %v: %s (make test-deps)", err, out)
	}
	// after the daemon's leak check
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "inet", "somebodys").Run() })
	d := harness.Start(t, harness.Options{})
	notice := func() string {
		t.Helper()
		resp, err := d.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range resp.Status.Conditions {
			if c.Type == runtimeapi.NetworkReady {
				if !c.Status {
					t.Errorf("not ready: %s", c.Message)
				}
				return c.Message
			}
		}
		t.Fatal("no condition of the network")
		return ""
	}
	pod, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod("inside")})
	if err != nil {
		t.Fatal(err)
	}
	const command = "`nft insert rule inet somebodys through iifname kuri0 accept; nft insert rule inet somebodys through oifname kuri0 accept`"
	if got := notice(); !strings.Contains(got, command) {
		t.Errorf("told %q", got)
	}
	if out, errs, code := d.Kuri(t, "info"); code != 0 || !strings.Contains(out, "yes, but: the node's firewall drops") ||
		!strings.Contains(out, command) {
		t.Errorf("kuri info: %d %s %s", code, out, errs)
	}
	d.RemovePod(t, pod.PodSandboxId)
}

// With network.open_firewall Kuri's own rules let pods through such a firewall, and kuri network
// prune removes them.
func TestFirewallIsOpened(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
	if out, err := exec.Command("nft",
		"table inet somebodys { chain through { type filter hook forward priority 0; policy drop; }; }").CombinedOutput(); err != nil {
		t.Skipf("SKIP: nft: %v: %s (make test-deps)", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "inet", "somebodys").Run() })
	listed := func() string {
		t.Helper()
		out, err := exec.Command("nft", "list", "table", "inet", "somebodys").CombinedOutput()
		if err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
		return string(out)
	}
	d := harness.Start(t, harness.Options{Config: "[network]\nopen_firewall = true\n"})
	pod, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod("inside")})
	if err != nil {
		t.Fatal(err)
	}
	if got := listed(); !strings.Contains(got, `iifname "kuri0"`) || !strings.Contains(got, `oifname "kuri0"`) {
		t.Errorf("the chain is %s", got)
	}
	if out, _, code := d.Kuri(t, "info"); code != 0 || strings.Contains(out, "yes, but") {
		t.Errorf("kuri info: %d %s", code, out)
	}
	d.RemovePod(t, pod.PodSandboxId)
	if _, errs, code := d.Kuri(t, "network", "prune"); code != 0 || strings.Contains(listed(), "kuri0") {
		t.Errorf("prune: %d %s, the chain is %s", code, errs, listed())
	}
}
