package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// TestWipe wipes a node: kuri wipe asks for confirmation and leaves only the configuration, whether
// or not kurid runs.
func TestWipe(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	config := filepath.Join(d.Dir, "config.toml")
	image := d.PullBusybox(t)
	// The container reports the stop signal, and must have the time to do so.
	script := "trap 'echo asked; exit 0' TERM; echo up; while :; do sleep 0.1; done"
	up := func(name string) (log string) {
		p := harness.Pod(name)
		p.LogDirectory = t.TempDir()
		p.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 24681}}
		pod := d.RunPod(t, p)
		c := d.Run(t, pod, harness.Container("main", image, "sh", "-c", script), p)
		harness.Eventually(t, 10*time.Second, "the container is up", func() error {
			if text := d.LogText(t, c, "stdout"); text != "up\n" {
				return exec.ErrNotFound
			}
			return nil
		})
		return d.ContainerStatus(t, c).LogPath
	}
	left := func() (pods, images int) {
		t.Helper()
		p, err := d.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		i, err := d.Images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(p.Items), len(i.Images)
	}
	asked := func(log string) {
		t.Helper()
		if text := run(t, "cat", log); !strings.Contains(text, "asked") {
			t.Errorf("the container was not asked to end: %s", text)
		}
	}

	// Without a terminal and without --yes nothing is removed, nor if the answer is no.
	log := up("first")
	if _, errs, code := d.Kuri(t, "wipe"); code != 2 || !strings.Contains(errs, "--yes") {
		t.Errorf("without a terminal: exit code %d: %s", code, errs)
	}
	x := onTerminal(t, d, "wipe")
	x.expect("remove all of it?")
	x.press("n\r")
	x.expect("nothing was removed")
	if code := x.exit(); code != 0 {
		t.Errorf("after a no: exit code %d", code)
	}
	if pods, images := left(); pods != 1 || images != 1 {
		t.Errorf("after a no there are %d pods and %d images", pods, images)
	}

	// After a yes everything is removed except the images, which --keep-images keeps.
	x = onTerminal(t, d, "wipe", "--keep-images")
	x.expect("1 pod with 1 container, 1 running")
	x.expect("remove all of it?")
	x.press("y\r")
	x.expect("the node is as it was")
	if code := x.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	asked(log)
	if pods, images := left(); pods != 0 || images != 1 {
		t.Errorf("there are %d pods and %d images", pods, images)
	}
	if strings.Contains(run(t, "ip", "-o", "link", "show"), "kuri") ||
		strings.Contains(run(t, "nft", "list", "tables"), "kuri-") {
		t.Error("the network is left")
	}

	// With kurid stopped and pods running, everything is removed, and the daemon starts on an empty node.
	log = up("second")
	mkdirAll(t, filepath.Join(d.Root, "layers", id("4"), "fs"))
	d.Stop(t)
	if out, errs, code := d.Kuri(t, "wipe", "--yes", "--kurid-config", config); code != 0 {
		t.Errorf("while kurid is stopped: exit code %d: %s%s", code, out, errs)
	}
	asked(log)
	if exists(filepath.Join(d.Root, "layers", id("4")))() {
		t.Error("a layer that nobody has is left")
	}
	if !exists(config)() {
		t.Error("the configuration is gone")
	}
	d.Continue(t)
	if pods, images := left(); pods != 0 || images != 0 {
		t.Errorf("there are %d pods and %d images", pods, images)
	}
	d.PullBusybox(t)
	pod := d.RunPod(t, harness.Pod("third"))
	d.RemovePod(t, pod)
	d.Settle(t) // the bridge exists again
}
