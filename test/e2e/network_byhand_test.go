package e2e

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// Parts of the network of running pods are removed by hand. kuri doctor names each of them, --fix
// restores all, and the pods, which keep running, reach the node and each other and are reached by
// their host port again. A pod that may configure its own network is left as it is.
func TestNetworkRemovedByHand(t *testing.T) {
	s := newShell(t, harness.Options{Config: "[network]\nisolate = true"})
	h := s.handled(t, "handled", &runtimeapi.PortMapping{ContainerPort: 80, HostPort: 18080})
	neighbour := s.handled(t, "neighbour")
	admin := harness.Pod("admin")
	own := s.RunPod(t, admin)
	c := harness.Container("vpn", s.image, "sleep", "1000")
	c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"CAP_NET_ADMIN"}}
	s.Run(t, own, c, admin)
	s.Exec(t, h.container, "sh", "-c", "httpd -p 80 -h /etc")

	table, leases := kuriTable(t), filepath.Join(s.State, "network", "leases")
	in := func(pod string, args ...string) string {
		return run(t, append([]string{"nsenter", "--net=/run/netns/kuri-" + pod, "ip"}, args...)...)
	}
	inet := regexp.MustCompile(`inet ([0-9.]+)(/[0-9]+)`)
	address := inet.FindStringSubmatch(in(h.pod, "address", "show", "dev", "eth0"))
	gateway := inet.FindStringSubmatch(run(t, "ip", "address", "show", "dev", "kuri0"))
	lease, stray := filepath.Join(leases, h.pod+".json"), filepath.Join(leases, id("2")+".json")
	for _, remove := range []func(){
		func() { in(h.pod, "address", "delete", address[1]+address[2], "dev", "eth0") },
		func() { in(neighbour.pod, "route", "delete", "default") },
		func() { in(own, "address", "flush", "dev", "eth0") },
		func() { run(t, "ip", "address", "delete", gateway[1]+gateway[2], "dev", "kuri0") },
		func() { run(t, "ip", "link", "set", neighbour.link, "nomaster") },
		func() { deleteRule(t, "inet", table, "postrouting") },
		func() { deleteRule(t, "inet", table, "guard") },
		func() { deleteRule(t, "bridge", table, "prerouting") },
		func() { run(t, "nft", "flush", "set", "bridge", table, "ips4") },
		func() { removeTree(t, lease) },
		func() { run(t, "cp", filepath.Join(leases, neighbour.pod+".json"), stray) },
	} {
		remove()
	}
	want := []string{
		"pod default/handled: inside, its eth0 has lost its address " + address[1] + address[2],
		"pod default/neighbour: inside, its eth0 has lost its route to " + gateway[1],
		"bridge kuri0: its address " + gateway[1] + gateway[2] + " is gone, the link " + neighbour.link +
			" of pod default/neighbour is not on it",
		"nftables inet " + table + " postrouting: rules of this chain were removed",
		"nftables inet " + table + " guard: rules of this chain were removed",
		"nftables bridge " + table + " prerouting: rules of this chain were removed",
		"nftables bridge " + table +
			": the pods in the tables that keep namespaces apart are not those of the node: 0 entries too many, 4 too few",
		"address " + lease + ": the record of the lease of pod default/handled was removed or changed",
		"address " + stray + ": nobody has the lease of this record",
	}
	r, _ := doctor(t, s.Daemon, "--fix")
	for _, dm := range r.Damages {
		said := dm.Subject + ": " + dm.Problem
		n := slices.IndexFunc(want, func(w string) bool { return strings.HasPrefix(said, w) })
		if n < 0 || dm.Check != "network" || !dm.Fixed {
			t.Errorf("not expected, or not fixed: %+v", dm)
			continue
		}
		want = slices.Delete(want, n, n+1)
	}
	for _, w := range want {
		t.Errorf("not found: %s", w)
	}

	for _, from := range []*tamperedPod{h, neighbour} {
		for _, to := range []string{gateway[1], address[1]} {
			if out, errs, code := s.Exec(t, from.container, "ping", "-c", "1", "-W", "10", to); code != 0 {
				t.Errorf("from %s to %s: %s%s", from.pod, to, out, errs)
			}
		}
	}
	harness.Eventually(t, 0, "the host port serves", func() error {
		resp, err := http.Get("http://127.0.0.1:18080/hostname")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); string(body) != "handled\n" {
			return fmt.Errorf("%q, %v", body, err)
		}
		return nil
	})
	if r, code := doctor(t, s.Daemon); code != 0 {
		t.Errorf("after --fix: exit code %d, %+v", code, r.Damages)
	}
	if out := in(own, "-4", "address", "show", "dev", "eth0"); out != "" {
		t.Errorf("the pod that may configure its network was given back: %s", out)
	}
}

// deleteRule deletes the first rule of a chain.
func deleteRule(t *testing.T, family, table, chain string) {
	t.Helper()
	listed := run(t, "nft", "-a", "list", "chain", family, table, chain)
	rule := regexp.MustCompile(`(?m)^[^{}\n]+ # handle (\d+)$`).FindStringSubmatch(listed)
	if rule == nil {
		t.Fatalf("chain %s has no rule: %s", chain, listed)
	}
	run(t, "nft", "delete", "rule", family, table, chain, "handle", rule[1])
}
