package kubelet

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/test/harness"
)

// criGates are the feature gates with which a kubelet gets from the CRI what it otherwise polls for
// or reads itself.
var criGates = []string{"EventedPLEG", "CRIListStreaming", "PodAndContainerStatsFromCRI"}

// metricsListen makes kurid export its counters of calls.
const metricsListen = "metrics_listen = \"127.0.0.1:9567\"\n"

// containerMetrics are some of cAdvisor's metrics that dashboards query.
var containerMetrics = []string{
	"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_memory_rss",
	"container_spec_cpu_shares", "container_processes",
}

// networkMetrics belong to the pod.
var networkMetrics = []string{"container_network_receive_bytes_total", "container_network_transmit_bytes_total"}

// TestCadvisor gives a kubelet without feature gates a socket where its cAdvisor finds the labels
// of containers.
func TestCadvisor(t *testing.T) {
	if os.Getenv("KURI_KUBELET") == "" {
		t.Skip("KURI_KUBELET is not set: test/kubelet/run builds a kubelet and sets it")
	}
	addAddress(t)
	d := harness.Start(t, harness.Options{Config: "cadvisor_listen = \"/run/containerd/containerd.sock\"\n" +
		metricsListen})
	loadExample(t, d)
	n := startNode(t, d, nodeOptions{})
	manifest := addExample(t, n)
	becomesReady(t, d, n)
	metricsFromCadvisor(t, d, n)
	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	isGone(t, d, n)
	d.RemovePod(t, d.RunPod(t, harness.Pod("last")))
}

// metricsFromCRI waits until /metrics/cadvisor has Kuri's rows: those of the container have its
// name, and those of the network only the pod's.
func metricsFromCRI(t *testing.T, d *harness.Daemon, n *node) {
	ofContainer := `container="` + containerName + `"`
	n.metrics(t, func(body string) error {
		return errors.Join(haveRows(body, containerMetrics, ofContainer), haveRows(body, networkMetrics, `container=""`))
	})
}

// metricsFromCadvisor waits until /metrics/cadvisor has cAdvisor's rows. Those of the network
// belong to the pod's oldest container, because there is no pause container.
func metricsFromCadvisor(t *testing.T, d *harness.Daemon, n *node) {
	ofContainer := `container="` + containerName + `"`
	n.metrics(t, func(body string) error {
		return haveRows(body, append(slices.Clone(containerMetrics), networkMetrics...), ofContainer)
	})
	if calls := rpcs(t, d); calls["ListPodSandboxMetrics"]+calls["StreamPodSandboxMetrics"] > 0 {
		t.Errorf("the kubelet asked the CRI for metrics: %v", calls)
	}
}

// metrics waits until /metrics/cadvisor satisfies want. cAdvisor finds a new container after some seconds.
func (n *node) metrics(t *testing.T, want func(body string) error) {
	t.Helper()
	harness.Eventually(t, time.Minute, "/metrics/cadvisor has the pod's rows", func() error {
		body, err := n.get(http.MethodGet, "/metrics/cadvisor")
		if err != nil {
			return err
		}
		if err := want(body); err != nil {
			return fmt.Errorf("%w\nit has\n%s", err, strings.Join(rows(body, "container_memory_rss"), "\n"))
		}
		return nil
	})
}

// haveRows returns nil if each of the metrics has a row of the example's pod with the label.
func haveRows(body string, names []string, label string) error {
	var missing []error
	for _, name := range names {
		found := slices.ContainsFunc(rows(body, name), func(line string) bool {
			return strings.Contains(line, label) && strings.Contains(line, `namespace="default"`) &&
				strings.Contains(line, `pod="`+podName+`"`)
		})
		if !found {
			missing = append(missing, fmt.Errorf("no %s with %s", name, label))
		}
	}
	return errors.Join(missing...)
}

// rows returns the lines of a metric.
func rows(body, name string) []string {
	return slices.DeleteFunc(strings.Split(body, "\n"),
		func(line string) bool { return !strings.HasPrefix(line, name+"{") })
}

// streamsAreUsed checks with kurid's counters of calls that the kubelet has used the features of its gates.
func streamsAreUsed(t *testing.T, d *harness.Daemon, n *node) {
	calls := rpcs(t, d)
	for _, method := range []string{"StreamPodSandboxes", "StreamContainers", "StreamPodSandboxMetrics"} {
		if calls[method] == 0 {
			t.Errorf("the kubelet has not called %s: %v", method, calls)
		}
	}
	if out, _, _ := d.Kuri(t, "metrics"); !strings.Contains(out, "\nkuri_event_readers 1\n") {
		t.Errorf("the kubelet takes no events:\n%s", out)
	}
}

// rpcs returns the number of answered calls by method, whatever their service and code.
func rpcs(t *testing.T, d *harness.Daemon) map[string]int {
	t.Helper()
	out, stderr, code := d.Kuri(t, "metrics")
	if code != 0 {
		t.Fatalf("kuri metrics: exit code %d: %s", code, stderr)
	}
	calls := map[string]int{}
	for line := range strings.Lines(out) {
		rest, ok := strings.CutPrefix(line, "kuri_rpc_requests_total{")
		if !ok {
			continue
		}
		labels, value, _ := strings.Cut(rest, "} ")
		_, method, _ := strings.Cut(labels, `method="`)
		method, _, _ = strings.Cut(method, `"`)
		var count float64
		fmt.Sscan(value, &count)
		calls[method] += int(count)
	}
	return calls
}
