package e2e

import (
	"os/exec"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// A firewall that keeps pods from the world is told to whoever asks how the node is, with the command that opens it, and the
// network is ready all the same.
func TestFirewallThatDrops(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent") // a firewalld of this machine is not that of the test's node
	if out, err := exec.Command("nft", "table inet somebodys { chain through { type filter hook forward priority 0; policy drop; }; }").CombinedOutput(); err != nil {
		t.Skipf("SKIP: nft: %v: %s (make test-deps)", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "inet", "somebodys").Run() }) // after the daemon's leak check
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
	if out, errs, code := d.Kuri(t, "info"); code != 0 || !strings.Contains(out, "yes, but: the node's firewall drops") || !strings.Contains(out, command) {
		t.Errorf("kuri info: %d %s %s", code, out, errs)
	}
	d.RemovePod(t, pod.PodSandboxId)
}
