package pod

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

// RunHook runs a hook of a container to its end: a command in the container, a request to the pod,
// or a pause. It returns the cause of a failure. A limit of 0 means none.
func RunHook(ctx context.Context, rt *client.Runtime, hook *corev1.LifecycleHandler, container, ip string,
	limit time.Duration) error {
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	switch {
	case hook.Exec != nil:
		r, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: hook.Exec.Command,
			Timeout: wholeSeconds(limit)})
		if err != nil {
			return err
		}
		if r.ExitCode != 0 {
			return fmt.Errorf("%s: exit code %d%s", hook.Exec.Command[0], r.ExitCode, lastLine(r.Stderr, r.Stdout))
		}
		return nil
	case hook.HTTPGet != nil:
		return requestHook(ctx, hook.HTTPGet, ip)
	case hook.Sleep != nil:
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(hook.Sleep.Seconds) * time.Second):
			return nil
		}
	}
	return nil
}

// wholeSeconds rounds up to seconds.
func wholeSeconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// lastLine returns the last line of the first output that is not empty, for an error.
func lastLine(outputs ...[]byte) string {
	for _, out := range outputs {
		if out = bytes.TrimSpace(out); len(out) > 0 {
			return ": " + string(out[bytes.LastIndexByte(out, '\n')+1:])
		}
	}
	return ""
}

// requestHook sends an HTTP request to a port of a pod. The response must be a success or a redirect. Like a
// kubelet it accepts any certificate, since the pod's address comes from the runtime.
func requestHook(ctx context.Context, get *corev1.HTTPGetAction, ip string) error {
	address := url.URL{
		Scheme: strings.ToLower(string(cmp.Or(get.Scheme, corev1.URISchemeHTTP))),
		Host:   net.JoinHostPort(cmp.Or(get.Host, ip, "127.0.0.1"), get.Port.String()),
		Path:   "/" + strings.TrimPrefix(get.Path, "/"),
	}
	if path, query, ok := strings.Cut(address.Path, "?"); ok {
		address.Path, address.RawQuery = path, query
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return err
	}
	for _, h := range get.HTTPHeaders {
		if req.Header.Add(h.Name, h.Value); strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
		}
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	answer, err := (&http.Client{Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		return err
	}
	answer.Body.Close()
	if answer.StatusCode < 200 || answer.StatusCode >= 400 {
		return fmt.Errorf("%s answers %s", address.String(), answer.Status)
	}
	return nil
}

// leastGrace is the minimum time between SIGTERM and SIGKILL, even if the preStop hook has used up
// the grace period.
const leastGrace = 2 * time.Second

// preStop runs the preStop hook that kuri run has stored in the annotations of a container, within
// the grace period. It returns the rest of the period in seconds. A failing hook is reported and
// does not prevent the stop.
func preStop(ctx context.Context, c *cli.CLI, rt *client.Runtime, st *runtimeapi.ContainerStatus, grace int64) int64 {
	note := manifest.PreStop(st.GetAnnotations())
	if note == "" || grace <= 0 || st.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return grace
	}
	began, limit := time.Now(), cli.Seconds(float64(grace))
	var hook corev1.LifecycleHandler
	err := json.Unmarshal([]byte(note), &hook)
	if err == nil {
		err = RunHook(ctx, rt, &hook, st.Id, ipOf(ctx, c, rt, st.Id), limit)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintf(c.Err, "kuri: the preStop hook of container %s: %s\n", cli.Printable(st.GetMetadata().GetName()),
			cli.Printable(cli.Describe(err)))
	}
	return wholeSeconds(max(limit-time.Since(began), leastGrace))
}

// ipOf returns the primary address of a container's pod, or "" if the pod has none of its own.
func ipOf(ctx context.Context, c *cli.CLI, rt *client.Runtime, container string) string {
	list, err := rt.ListContainers(ctx,
		&runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: container}})
	if err != nil || len(list.Containers) != 1 {
		return ""
	}
	return podIP(ctx, rt, &runtimeapi.PodSandbox{Id: list.Containers[0].PodSandboxId})
}
