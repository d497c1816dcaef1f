package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
)

func (c *cli) metricsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Show what the daemon tells Prometheus of itself",
		Long: `metrics prints what kurid tells Prometheus: its requests with their errors and times, pods and containers by state, exits
by reason, and its own process. It is there when metrics_listen is set in kurid's configuration, and asked for on this node.`,
		Example: `  kuri metrics
  kuri metrics | grep ^kuri_rpc_in_flight`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			rt, err := c.runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			url, err := metricsURL(ctx, rt)
			if err != nil {
				return err
			}
			s, err := c.settings()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, s.Timeout)
			defer cancel()
			return fetch(ctx, url, c.out)
		},
	}
}

// metricsURL asks the runtime where its metrics are.
func metricsURL(ctx context.Context, rt *client.Runtime) (string, error) {
	status, err := rt.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return "", err
	}
	var info struct {
		Config struct {
			MetricsListen *string `json:"metrics_listen"`
		} `json:"config"`
	}
	// What another runtime has there is not for us.
	if err := json.Unmarshal([]byte(status.GetInfo()["config"]), &info); err != nil || info.Config.MetricsListen == nil {
		return "", errors.New("this runtime does not say where its metrics are: only kurid does")
	}
	if *info.Config.MetricsListen == "" {
		return "", errors.New(`kurid has no address for its metrics: set metrics_listen = "127.0.0.1:9567" in /etc/kuri/config.toml and restart kurid`)
	}
	at, err := netip.ParseAddrPort(*info.Config.MetricsListen)
	if err != nil {
		return "", fmt.Errorf("metrics_listen: %w", err)
	}
	switch addr := at.Addr(); {
	case addr == netip.IPv4Unspecified():
		at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	case addr == netip.IPv6Unspecified():
		at = netip.AddrPortFrom(netip.IPv6Loopback(), at.Port())
	}
	return "http://" + at.String() + "/metrics", nil
}

// fetch writes what is at a URL to out.
func fetch(ctx context.Context, url string, out io.Writer) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: &http.Transport{Proxy: nil}}).Do(req)
	if err != nil {
		return fmt.Errorf("ask kurid for its metrics: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask kurid for its metrics at %s: %s", url, resp.Status)
	}
	_, err = io.Copy(out, resp.Body)
	return err
}
