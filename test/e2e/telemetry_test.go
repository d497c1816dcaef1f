package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// Prometheus gets what kurid tells of itself, at the address that is configured.
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
		`kuri_container_exits_total{reason="Error"} 1`, "kuri_event_readers 1", "kuri_event_lag ", "kuri_build_info{", "go_goroutines ", "process_open_fds ",
	} {
		if !strings.Contains(string(body), "\n"+want) {
			t.Errorf("there is no %s in\n%s", want, body)
		}
	}
	// kuri finds the address by itself.
	said, stderr, code := s.Kuri(t, "metrics")
	if code != 0 || !strings.Contains(said, "\nkuri_pods{state=\"ready\"} 1\n") {
		t.Errorf("kuri metrics: exit code %d, %s", code, stderr)
	}
	if resp, err := http.Post("http://"+address+"/metrics", "", nil); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("%v, %v", resp, err)
	}
}

func TestMetricsThatAreNotConfigured(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	if _, stderr, code := d.Kuri(t, "metrics"); code != 1 || !strings.Contains(stderr, "metrics_listen") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}
