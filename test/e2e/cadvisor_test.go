package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// rawCodec passes encoded messages through unchanged.
type rawCodec struct{}

func (rawCodec) Name() string                  { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

// fields returns the fields of a message: strings and messages as bytes, numbers in decimal.
func fields(t *testing.T, body []byte) map[protowire.Number][]string {
	t.Helper()
	out := make(map[protowire.Number][]string)
	for len(body) > 0 {
		number, kind, n := protowire.ConsumeTag(body)
		body = body[max(n, 0):]
		var value string
		if kind == protowire.VarintType {
			v, m := protowire.ConsumeVarint(body)
			value, n = fmt.Sprint(v), m
		} else {
			v, m := protowire.ConsumeBytes(body)
			value, n = string(v), m
		}
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		body = body[n:]
		out[number] = append(out[number], value)
	}
	return out
}

// cAdvisor's requests are answered on the socket where it expects containerd, which serves the rest
// of the CRI too.
func TestCadvisorFindsLabels(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "containerd.sock")
	s := newShell(t, harness.Options{Config: fmt.Sprintf("cadvisor_listen = %q\n", socket)})
	labels := map[string]string{"io.kubernetes.pod.name": "web", "io.kubernetes.container.name": "app"}
	first := s.run(t, func(c *container, _ *security) { c.Labels = labels }, "sleep", "1000")
	second := s.run(t, nil, "sh", "-c", "exit 3")
	s.WaitExit(t, second)

	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(method, id string) (map[protowire.Number][]string, error) {
		var body []byte
		request := []byte{}
		if id != "" {
			request = protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), id)
		}
		err := conn.Invoke(t.Context(), method, request, &body, grpc.ForceCodec(rawCodec{})) //nolint:staticcheck // the simple one will do
		return fields(t, body), err
	}
	const get, task = "/containerd.services.containers.v1.Containers/Get", "/containerd.services.tasks.v1.Tasks/Get"
	if version, err := ask("/containerd.services.version.v1.Version/Version", ""); err != nil || len(version[1]) != 1 {
		t.Errorf("version: %v, %v", version, err)
	}
	for id, want := range map[string]struct{ kind, status string }{first: {"sandbox", "2"}, second: {"container", "3"}} {
		resp, err := ask(get, id)
		if err != nil || len(resp[1]) != 1 {
			t.Fatalf("%v, %v", resp, err)
		}
		c := fields(t, []byte(resp[1][0]))
		if c[1][0] != id || c[3][0] != s.image || !strings.HasPrefix(fields(t, []byte(c[5][0]))[2][0], "{") {
			t.Errorf("%q", c)
		}
		have := make(map[string]string)
		for _, entry := range c[2] {
			e := fields(t, []byte(entry))
			have[e[1][0]] = e[2][0]
		}
		if have["io.cri-containerd.kind"] != want.kind ||
			id == first && (have["io.kubernetes.pod.name"] != "web" || have["io.kubernetes.container.name"] != "app") {
			t.Errorf("%v", have)
		}
		resp, err = ask(task, id)
		if err != nil {
			t.Fatal(err)
		}
		p := fields(t, []byte(resp[1][0]))
		if p[1][0] != id || p[4][0] != want.status || id == first && p[3][0] != fmt.Sprint(firstProcess(t, s.Daemon, id)) ||
			id == second && p[9][0] != "3" {
			t.Errorf("%q", p)
		}
	}
	for _, id := range []string{strings.Repeat("0", 64), first[:12], ""} {
		for _, method := range []string{get, task} {
			_, err := ask(method, id)
			harness.WantError(t, err, codes.NotFound)
		}
	}
	if resp, err := runtimeapi.NewRuntimeServiceClient(conn).Version(t.Context(),
		&runtimeapi.VersionRequest{}); err != nil || resp.RuntimeName != "kuri" {
		t.Errorf("%v, %v", resp, err)
	}
}
