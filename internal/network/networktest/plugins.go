package networktest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const pluginsModule = "github.com/containernetworking/plugins"
const pluginsVersion = "v1.10.0"

// RealPlugins builds the reference CNI plugins from their module, once for all runs on this machine, and returns their
// directory. It skips the test when they cannot be had.
func RealPlugins(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	Must(t, err)
	bin := filepath.Join(cache, "kuri-test", "cni-plugins-"+pluginsVersion)
	wanted := []string{
		"plugins/main/bridge", "plugins/main/ptp", "plugins/main/loopback", "plugins/ipam/host-local",
		"plugins/meta/portmap", "plugins/meta/firewall", "plugins/meta/bandwidth",
	}
	complete := true
	for _, p := range wanted {
		if _, err := os.Stat(filepath.Join(bin, filepath.Base(p))); err != nil {
			complete = false
		}
	}
	if complete {
		return bin
	}
	Must(t, os.MkdirAll(bin, 0o755))
	module := t.TempDir()
	command := func(args ...string) (out []byte, err error) {
		err = OnMachine(t, func() error {
			cmd := exec.Command("go", args...)
			cmd.Dir = module
			cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "CGO_ENABLED=0")
			out, err = cmd.CombinedOutput()
			return err
		})
		return out, err
	}
	Must(t, os.WriteFile(filepath.Join(module, "go.mod"),
		[]byte("module plugins\n\nrequire "+pluginsModule+" "+pluginsVersion+"\n"), 0o600))
	if out, err := command("mod", "download", pluginsModule); err != nil {
		t.Skipf("SKIP: the CNI plugins cannot be fetched: %v: %s", err, out)
	}
	for _, p := range wanted {
		out := filepath.Join(bin, filepath.Base(p))
		if msg, err := command("build", "-o", out+".new", pluginsModule+"/"+p); err != nil {
			t.Fatalf("build %s: %v: %s", p, err, msg)
		}
		Must(t, os.Rename(out+".new", out))
	}
	return bin
}
