package pod

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

// An HTTP hook sends the manifest's path, query and headers to the pod's address, and accepts only
// success and redirects.
func TestHookByHTTP(t *testing.T) {
	asked := make(chan *http.Request, 1)
	answer := http.StatusOK
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r
		w.WriteHeader(answer)
	}))
	defer s.Close()
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, _ := strconv.Atoi(u.Port())
	hook := &corev1.LifecycleHandler{HTTPGet: &corev1.HTTPGetAction{
		Scheme: corev1.URISchemeHTTPS, Port: intstr.FromInt(port), Path: "bye?now=1",
		HTTPHeaders: []corev1.HTTPHeader{{Name: "Host", Value: "web.example"}, {Name: "X-Why", Value: "stop"}},
	}}
	for _, answer = range []int{http.StatusOK, http.StatusFound} {
		if err := RunHook(t.Context(), nil, hook, "c", u.Hostname(), time.Minute); err != nil {
			t.Errorf("%d: %v", answer, err)
		}
		if r := <-asked; r.URL.Path != "/bye" || r.URL.RawQuery != "now=1" || r.Host != "web.example" ||
			r.Header.Get("X-Why") != "stop" {
			t.Errorf("asked %s of %s with %v", r.URL, r.Host, r.Header)
		}
	}
	answer = http.StatusInternalServerError
	if err := RunHook(t.Context(), nil, hook, "c", u.Hostname(), time.Minute); err == nil ||
		!strings.Contains(err.Error(), "answers 500") {
		t.Errorf("500: %v", err)
	}
}

// A preStop hook may use the grace period. The container has the rest of it, and two seconds at least.
func TestPreStop(t *testing.T) {
	c, _, errs := clitest.New(nil)
	st := &runtimeapi.ContainerStatus{Id: "c", State: clitest.Running,
		Metadata:    &runtimeapi.ContainerMetadata{Name: "web"},
		Annotations: map[string]string{"kuri-cri.github.io/pre-stop": `{"sleep":{"seconds":0}}`}}
	if left := preStop(t.Context(), c, unreachableRuntime(t), st, 30); left < 28 || left > 30 || errs.Len() > 0 {
		t.Errorf("%d seconds left: %s", left, errs)
	}
	st.Annotations["kuri-cri.io/pre-stop"] = `{"sleep":{"seconds":600}}`
	if left := preStop(t.Context(), c, unreachableRuntime(t), st, 1); left != 2 ||
		!strings.Contains(errs.String(), "kuri: the preStop hook of container web: ") {
		t.Errorf("%d seconds left: %s", left, errs)
	}
	errs.Reset()
	for _, none := range []*runtimeapi.ContainerStatus{{State: clitest.Running},
		{State: clitest.Exited, Annotations: st.Annotations}} {
		if left := preStop(context.Background(), c, nil, none, 7); left != 7 || errs.Len() > 0 {
			t.Errorf("%v: %d seconds left: %s", none, left, errs)
		}
	}
	if left := preStop(context.Background(), c, nil, st, 0); left != 0 {
		t.Errorf("a kill waits for a hook: %d", left)
	}
}

// unreachableRuntime returns a client of a runtime that answers no call.
func unreachableRuntime(t *testing.T) *client.Runtime {
	conn, err := grpc.NewClient("unix://"+filepath.Join(t.TempDir(), "none.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &client.Runtime{RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn)}
}
