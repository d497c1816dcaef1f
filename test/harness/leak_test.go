package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m) }

// TestTracesShowWhatIsLeft leaves one object of each kind and looks for it, then removes it and looks again.
func TestTracesShowWhatIsLeft(t *testing.T) {
	need(t)
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", args, err, out)
		}
	}
	dir := t.TempDir()
	point, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	group := "/sys/fs/cgroup/left"
	if len(point) > 0 {
		group = filepath.Join(filepath.Dir(point[0]), "left")
	}
	before, err := Observe(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(before["links"]) != 1 || !strings.HasPrefix(before["links"][0], "lo:") {
		t.Errorf("a cell begins with the links %q, want lo alone", before["links"])
	}

	run("ip", "netns", "add", "left")
	run("ip", "link", "add", "left0", "type", "bridge")
	run("ip", "address", "add", "192.0.2.1/24", "dev", "left0")
	run("ip", "link", "set", "left0", "up")
	run("nft", "add", "table", "inet", "left")
	run("mkdir", group, filepath.Join(dir, "empty"))
	Write(t, dir, "left", "")
	sleep := exec.Command("sleep", "100")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	after, err := Observe(dir)
	if err != nil {
		t.Fatal(err)
	}
	diff := "\n" + strings.Join(after.Beyond(before), "\n")
	for kind, word := range map[string]string{
		"mounts": "/run/netns/left", "network namespaces": "/run/netns/left", "links": "left0", "addresses": "192.0.2.1",
		"routes": "192.0.2.0/24", "firewall": "table inet left", "cgroups": group, "processes": "sleep 100", "files": dir +
			"/left",
	} {
		if !strings.Contains(diff, "\n"+kind+": ") || !strings.Contains(diff, word) {
			t.Errorf("%s: %s is not seen in:\n%s", kind, word, diff)
		}
	}

	sleep.Process.Kill()
	sleep.Wait()
	run("ip", "netns", "delete", "left")
	run("ip", "link", "delete", "left0")
	run("nft", "delete", "table", "inet", "left")
	if err := os.Remove(group); err != nil {
		t.Fatal(err)
	}
	run("rm", filepath.Join(dir, "left"))
	run("umount", "/run/netns") // a mount that ip created to share its namespaces
	run("rmdir", "/run/netns")
	CheckLeaks(t, "after all was taken away", before, dir)
	CheckLosses(t, "after all was taken away", before)
}
