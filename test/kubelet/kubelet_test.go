package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// The kubelet's names for the pod of examples/web.yaml.
const (
	podName       = "web-" + nodeName
	containerName = "web"
)

// TestStaticPod follows the example's pod through a node's life.
func TestStaticPod(t *testing.T) {
	staticPod(t, harness.Options{}, nodeOptions{})
}

// TestStaticPodTwoEndpoints is the same with the ImageService on a second socket and with a kubelet
// that uses events, streamed lists and metrics from the CRI.
func TestStaticPodTwoEndpoints(t *testing.T) {
	staticPod(t, harness.Options{Images: true, Config: metricsListen}, nodeOptions{Gates: criGates},
		step{"its metrics come from the CRI", metricsFromCRI},
		step{"the kubelet uses events and streams", streamsAreUsed},
	)
}

// step is a part of a pod's life.
type step struct {
	name string
	run  func(*testing.T, *harness.Daemon, *node)
}

// staticPod follows the example's pod. The steps in more come after the pod is ready.
func staticPod(t *testing.T, options harness.Options, nodeOptions nodeOptions, more ...step) {
	if os.Getenv("KURI_KUBELET") == "" {
		t.Skip("KURI_KUBELET is not set: test/kubelet/run builds a kubelet and sets it")
	}
	addAddress(t)
	d := harness.Start(t, options)
	loadExample(t, d)
	n := startNode(t, d, nodeOptions)
	manifest := addExample(t, n)

	steps := []step{
		{"becomes ready and serves its page", becomesReady},
		{"its log answers", logAnswers},
		{"a command runs in it", commandRuns},
		{"the summary shows it", summaryShows},
		{"it comes back when its process is killed", comesBack},
		{"it goes on while kurid is stopped and started", goesOn((*harness.Daemon).Stop)},
		{"it goes on while kurid is killed and started", goesOn((*harness.Daemon).Kill9)},
	}
	for _, step := range slices.Insert(steps, 4, more...) {
		if !t.Run(step.name, func(t *testing.T) { step.run(t, d, n) }) {
			break
		}
	}
	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	t.Run("it is gone when its file is removed", func(t *testing.T) { isGone(t, d, n) })
	// The built-in bridge is removed some time after the last pod. The leak check compares with a
	// daemon that has just started, so a last pod restores the bridge.
	d.RemovePod(t, d.RunPod(t, harness.Pod("last")))
}

// loadExample loads the example's image, which no registry has, into the daemon.
func loadExample(t *testing.T, d *harness.Daemon) {
	t.Helper()
	archive := filepath.Join(t.TempDir(), "web.tar")
	build := exec.Command("go", "run", "./examples/web/mkimage", archive)
	build.Dir = harness.Repository()
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make the example's image: %v\n%s", err, out)
	}
	if _, stderr, code := d.Kuri(t, "load", archive); code != 0 {
		t.Fatalf("load the example's image: exit code %d: %s", code, stderr)
	}
}

// addExample makes the example a static pod of the node and returns the path of its file.
func addExample(t *testing.T, n *node) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(harness.Repository(), "examples", "web.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return harness.Write(t, n.manifests, "web.yaml", string(data))
}

// ready waits until the pod is ready with the given number of restarts of its container, and
// returns its status.
func (n *node) ready(t *testing.T, restarts int32) v1.PodStatus {
	t.Helper()
	var status v1.PodStatus
	harness.Eventually(t, 2*time.Minute, "the pod is ready", func() error {
		pods, err := n.pods()
		if err != nil {
			return err
		}
		for _, p := range pods {
			if p.Name == podName {
				status = p.Status
				return isReady(status, restarts)
			}
		}
		return fmt.Errorf("the kubelet has %d pods and not %s", len(pods), podName)
	})
	return status
}

// isReady returns nil if the pod is ready and its container has been restarted that often.
func isReady(status v1.PodStatus, restarts int32) error {
	if len(status.ContainerStatuses) != 1 || status.ContainerStatuses[0].RestartCount != restarts {
		return fmt.Errorf("want one container restarted %d times: %+v", restarts, status.ContainerStatuses)
	}
	for _, c := range status.Conditions {
		if c.Type == v1.PodReady && c.Status == v1.ConditionTrue && status.ContainerStatuses[0].Ready {
			return nil
		}
	}
	return fmt.Errorf("phase %s: %+v", status.Phase, status.ContainerStatuses)
}

func becomesReady(t *testing.T, d *harness.Daemon, n *node) {
	status := n.ready(t, 0)
	response, err := http.Get(fmt.Sprintf("http://%s:8080/", status.PodIP))
	if err != nil {
		t.Fatalf("fetch the page of the pod: %v", err)
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK || !strings.Contains(string(page), podName) {
		t.Errorf("the page of the pod should name it: %s, %v\n%s", response.Status, err, page)
	}
	if got := status.ContainerStatuses[0].Image; got != "localhost/kuri-web:1" {
		t.Errorf("the container's image is %q", got)
	}
}

func logAnswers(t *testing.T, d *harness.Daemon, n *node) {
	harness.Eventually(t, 10*time.Second, "the log has the request for the page", func() error {
		return n.logHas("serves on", "GET / from")
	})
}

// logHas returns nil if the container's log, read through the kubelet, contains the words.
func (n *node) logHas(words ...string) error {
	log, err := n.get(http.MethodGet, fmt.Sprintf("/containerLogs/default/%s/%s", podName, containerName))
	if err != nil {
		return err
	}
	for _, w := range words {
		if !strings.Contains(log, w) {
			return fmt.Errorf("the log has no %q:\n%s", w, log)
		}
	}
	return nil
}

func commandRuns(t *testing.T, d *harness.Daemon, n *node) {
	out, err := n.run("/web -check")
	if err != nil || !strings.Contains(out, "200 OK: ok") {
		t.Errorf("web -check in the container said %q, %v", out, err)
	}
	if out, err := n.run("/nothing"); err == nil {
		t.Errorf("a program that is not there said %q", out)
	}
}

// run runs a command in the container, through the kubelet.
func (n *node) run(command string) (string, error) {
	query := url.Values{"cmd": {command}}
	return n.get(http.MethodPost, fmt.Sprintf("/run/default/%s/%s?%s", podName, containerName, query.Encode()))
}

func summaryShows(t *testing.T, d *harness.Daemon, n *node) {
	harness.Eventually(t, time.Minute, "the summary has the pod's figures", func() error {
		body, err := n.get(http.MethodGet, "/stats/summary")
		if err != nil {
			return err
		}
		return summaryHas(body)
	})
}

// summaryHas returns nil if a summary has plausible figures for the example's container.
func summaryHas(body string) error {
	var summary struct {
		Pods []struct {
			PodRef     struct{ Name string } `json:"podRef"`
			Containers []struct {
				Name   string `json:"name"`
				Memory struct {
					WorkingSetBytes uint64 `json:"workingSetBytes"`
				} `json:"memory"`
				CPU struct {
					UsageCoreNanoSeconds uint64 `json:"usageCoreNanoSeconds"`
				} `json:"cpu"`
				Rootfs struct {
					UsedBytes *uint64 `json:"usedBytes"`
				} `json:"rootfs"`
			} `json:"containers"`
		} `json:"pods"`
	}
	if err := json.Unmarshal([]byte(body), &summary); err != nil {
		return err
	}
	for _, p := range summary.Pods {
		if p.PodRef.Name != podName || len(p.Containers) != 1 {
			continue
		}
		c := p.Containers[0]
		if c.Name == containerName && c.Memory.WorkingSetBytes > 100<<10 && c.CPU.UsageCoreNanoSeconds > 0 &&
			c.Rootfs.UsedBytes != nil {
			return nil
		}
	}
	return fmt.Errorf("not in it, or not complete: %s", body)
}

func comesBack(t *testing.T, d *harness.Daemon, n *node) {
	before := n.ready(t, 0).ContainerStatuses[0].ContainerID
	if err := syscall.Kill(containerPid(t, before), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	status := n.ready(t, 1).ContainerStatuses[0]
	if status.ContainerID == before {
		t.Errorf("the container has been restarted and is still %s", before)
	}
	if ended := status.LastTerminationState.Terminated; ended == nil || ended.ExitCode != 137 ||
		ended.ContainerID != before {
		t.Errorf("of the killed container the kubelet knows %+v, want exit code 137 of %s", ended, before)
	}
	if err := n.logHas("serves on"); err != nil {
		t.Error(err)
	}
}

// goesOn ends the daemon with end, waits until the kubelet has noticed, and starts the daemon again.
func goesOn(end func(*harness.Daemon, testing.TB)) func(*testing.T, *harness.Daemon, *node) {
	return func(t *testing.T, d *harness.Daemon, n *node) {
		before := n.ready(t, 1)
		id := before.ContainerStatuses[0].ContainerID
		pid := containerPid(t, id)
		end(d, t)
		page, err := http.Get(fmt.Sprintf("http://%s:8080/", before.PodIP))
		if err != nil {
			t.Errorf("fetch the page while kurid is away: %v", err)
		} else {
			page.Body.Close()
		}
		time.Sleep(3 * time.Second) // the kubelet polls once a second
		d.Continue(t)
		// The kubelet has recovered when a new request for the pod succeeds.
		harness.Eventually(t, 30*time.Second, "a command runs in the pod again", func() error {
			_, err := n.run("/web -check")
			return err
		})
		time.Sleep(3 * time.Second) // a restart of the pod could take this long
		after := n.ready(t, 1)
		if got := after.ContainerStatuses[0].ContainerID; got != id {
			t.Errorf("the container was %s and is %s", id, got)
		}
		if after.PodIP != before.PodIP {
			t.Errorf("the pod's address was %s and is %s", before.PodIP, after.PodIP)
		}
		if got := containerPid(t, id); got != pid {
			t.Errorf("the process was %d and is %d", pid, got)
		}
		if err := n.logHas("serves on"); err != nil {
			t.Error(err)
		}
	}
}

// containerPid finds a container's process by its cgroup. id is the kubelet's, with the runtime's
// name as its prefix.
func containerPid(t *testing.T, id string) int {
	t.Helper()
	_, id, _ = strings.Cut(id, "://")
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && id != "" && strings.Contains(string(data), id) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("container %s has no process", id)
	return 0
}

// isGone waits until neither the kubelet nor Kuri has any trace of the pod. The kubelet collects
// sandboxes and logs once a minute.
func isGone(t *testing.T, d *harness.Daemon, n *node) {
	harness.Eventually(t, 3*time.Minute, "nothing is left of the pod", func() error {
		time.Sleep(time.Second / 2) // each poll adds a few lines to the daemon's log
		return errors.Join(n.podsGone(), sandboxesGone(t, d), n.filesGone(t))
	})
}

func (n *node) podsGone() error {
	pods, err := n.pods()
	if err == nil && len(pods) > 0 {
		err = fmt.Errorf("the kubelet still has pod %s", pods[0].Name)
	}
	return err
}

func sandboxesGone(t *testing.T, d *harness.Daemon) error {
	sandboxes, err := d.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := d.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	if s, c := len(sandboxes.Items), len(containers.Containers); s+c > 0 {
		return fmt.Errorf("kurid still has %d sandboxes and %d containers", s, c)
	}
	return nil
}

// filesGone returns nil if the kubelet's directories and cgroups contain nothing of a pod.
func (n *node) filesGone(t *testing.T) error {
	left, err := filepath.Glob(filepath.Join(n.dir, "root", "pods", "*"))
	if err != nil {
		return err
	}
	for _, dir := range []string{n.logs, "/var/log/containers"} {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && path != dir {
				left = append(left, path)
			}
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, point := range hierarchies(t) {
		cgroups, err := filepath.Glob(filepath.Join(point, cgroupRoot, "kubepods", "*", "pod*"))
		if err != nil {
			return err
		}
		guaranteed, err := filepath.Glob(filepath.Join(point, cgroupRoot, "kubepods", "pod*"))
		if err != nil {
			return err
		}
		left = append(append(left, cgroups...), guaranteed...)
	}
	if len(left) > 0 {
		return fmt.Errorf("there are still %s", strings.Join(left, ", "))
	}
	return nil
}
