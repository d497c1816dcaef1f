package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func MetricsCommand(c *cli.CLI) *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Show the daemon's own Prometheus metrics",
		Long: `metrics prints kurid's Prometheus metrics: its requests with their errors and times, the steps of what it does, pulls,
pods and containers by state, exits by reason, what is stored, its keeper and its own process. Prometheus itself gets it when
metrics_listen is set in kurid's configuration; this command asks kurid on its debug socket, which is root's.`,
		Example: `  kuri metrics
  kuri metrics | grep ^kuri_rpc_in_flight`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askDaemonShortly(cmd.Context(), c, "/metrics", c.Out)
		},
	}
}

// askDaemon copies the response of kurid's debug socket for a path to out.
func askDaemon(ctx context.Context, c *cli.CLI, path string, out io.Writer) error {
	rt, err := c.Runtime(ctx)
	if err != nil {
		return err
	}
	defer rt.Close()
	socket, err := debugSocket(ctx, rt)
	if err != nil {
		return err
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://kurid"+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DialContext: dial}}).Do(req)
	if err != nil {
		return fmt.Errorf("ask kurid at %s: %w", socket, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if said := strings.TrimSpace(string(why)); said != "" {
			return fmt.Errorf("ask kurid at %s for %s: %s", socket, path, cli.Printable(said))
		}
		return fmt.Errorf("ask kurid at %s for %s: %s", socket, path, resp.Status)
	}
	_, err = io.Copy(out, resp.Body)
	return err
}

// debugSocket returns the path of the runtime's debug socket.
func debugSocket(ctx context.Context, rt *client.Runtime) (string, error) {
	status, err := rt.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return "", err
	}
	var info struct {
		DebugSocket string `json:"debugSocket"`
	}
	// Other runtimes may have a different structure under this key.
	if err := json.Unmarshal([]byte(status.GetInfo()["config"]), &info); err != nil || info.DebugSocket == "" {
		return "", fmt.Errorf("the runtime at %s has no debug socket: only Kuri's has one", rt.Endpoint())
	}
	return info.DebugSocket, nil
}
