package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// Prometheus gets kurid's own metrics at the configured address.
func TestTelemetry(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	s := newShell(t, harness.Options{Config: fmt.Sprintf("metrics_listen = %q\n", address)})
	listen(t, s.Daemon)
	s.run(t, nil, "sleep", "1000")
	s.WaitExit(t, s.run(t, nil, "sh", "-c", "exit 3"))
	if _, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{}); err == nil {
		t.Error("a stop of nothing")
	}
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	for _, want := range []string{
		`kuri_rpc_requests_total{code="OK",method="CreateContainer",service="runtime.v1.RuntimeService"} 2`,
		`kuri_rpc_requests_total{code="InvalidArgument",method="StopContainer",service="runtime.v1.RuntimeService"} 1`,
		`kuri_rpc_duration_seconds_count{method="StartContainer",service="runtime.v1.RuntimeService"} 2`,
		`kuri_rpc_in_flight{method="GetContainerEvents",service="runtime.v1.RuntimeService"} 1`,
		`kuri_rpc_in_flight{method="StartContainer",service="runtime.v1.RuntimeService"} 0`,
		`kuri_pods{state="ready"} 1`, `kuri_containers{state="running"} 1`, `kuri_containers{state="exited"} 1`,
		`kuri_container_exits_total{reason="Error"} 1`, `kuri_container_exits_total{reason="OOMKilled"} 0`,
		`kuri_step_duration_seconds_count{method="RunPodSandbox",step="network"} 2`,
		`kuri_step_duration_seconds_count{method="CreateContainer",step="process"} 2`,
		`kuri_keeper_step_duration_seconds_count{method="RunPodSandbox",step="namespaces"} 2`,
		`kuri_keeper_step_duration_seconds_count{method="CreateContainer",step="cgroup"} 2`,
		`kuri_operations_in_flight{method="PullImage"} 0`, `kuri_operation_oldest_age_seconds{method="PullImage"} 0`,
		fmt.Sprintf("kuri_image_pull_duration_seconds_count{registry=%q} 1", s.Registry.Host),
		fmt.Sprintf("kuri_image_pull_bytes_total{registry=%q} ", s.Registry.Host),
		fmt.Sprintf("kuri_image_pull_retries_total{registry=%q} 0", s.Registry.Host),
		"kuri_images 1", "kuri_image_layers 1", "kuri_image_layer_bytes ", "kuri_image_pulls_in_flight 0",
		"kuri_writable_layer_bytes ", "kuri_events_missed_total 0",
		`kuri_process_up{process="keeper"} 1`, `kuri_process_up{process="holder"} 1`,
		`kuri_process_restarts_total{process="keeper"} 0`,
		`kuri_process_proportional_memory_bytes{process="keeper"} `, `kuri_process_open_fds{process="holder"} `,
		`kuri_process_cpu_seconds_total{process="keeper"} `,
		"kuri_keeper_sandboxes 1", "kuri_keeper_containers ", "kuri_keeper_events_lost_total 0",
		"kuri_event_readers 1", "kuri_event_lag ", "kuri_build_info{", "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(string(body), "\n"+want) {
			t.Errorf("there is no %s in\n%s", want, body)
		}
	}
	said, stderr, code := s.Kuri(t, "metrics")
	if code != 0 || !strings.Contains(said, "\nkuri_pods{state=\"ready\"} 1\n") {
		t.Errorf("kuri metrics: exit code %d, %s", code, stderr)
	}
	resp, err = http.Post("http://"+address+"/metrics", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Error(resp.Status)
	}
}

// Without an address for Prometheus the metrics are on the debug socket.
func TestMetricsThatAreNotConfigured(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	if said, stderr, code := d.Kuri(t, "metrics"); code != 0 || !strings.Contains(said, "\nkuri_build_info{") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// The log has a line for each change, with its object, steps and caller. A change that takes longer
// than the configured limit is a warning.
func TestTheLogOfWhatChanges(t *testing.T) {
	s := newShell(t, harness.Options{Config: "[log_slow]\nStartContainer = 0.000001\n"})
	c := s.run(t, nil, "sleep", "1000")
	// On a busy disk the record takes longer than the process, whose parts are looked for.
	const slowest = "slowest=process"
	harness.Eventually(t, time.Minute, "the process is the slowest step of a start", func() error {
		if strings.Contains(s.Log(t), slowest) {
			return nil
		}
		s.run(t, nil, "sleep", "1000")
		return errors.New("not yet")
	})
	if _, err := s.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: c}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(s.Log(t), "\n")
	for method, want := range map[string][]string{
		"RunPodSandbox": {"level=INFO", "namespace=", " pod=shell ", "pod_id=" + s.pod, "steps.namespaces=",
			"steps.network=", "caller.pid=", "caller.uid=0"},
		"CreateContainer": {" pod=shell ", "container=c1 ", "container_id=" + c, "steps.image=", "steps.process="},
		"StartContainer": {"level=WARN", " pod=shell ", "container=c", "slower_than=1µs", slowest, "parts.startline=",
			"slowest_part="},
		"StopContainer": {"level=INFO", "container=c1 ", "timeout=0", "steps.kill="},
	} {
		i := slices.IndexFunc(lines, func(l string) bool {
			return strings.Contains(l, "RuntimeService/"+method+" ") && strings.Contains(l, " pod=shell ") &&
				(method != "StartContainer" || strings.Contains(l, slowest))
		})
		if i < 0 {
			t.Errorf("the log has no line of %s", method)
			continue
		}
		for _, w := range want {
			if !strings.Contains(lines[i], w) {
				t.Errorf("no %q in %s", w, lines[i])
			}
		}
	}
}
