package node

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func VersionCommand(c *cli.CLI) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "Print the versions of kuri, of the runtime, and of the API between them",
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if c.Tabular() {
				fmt.Fprintln(c.Out, "kuri     ", c.Version)
			}
			rt, err := c.Runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			v, err := rt.Version(ctx, &runtimeapi.VersionRequest{})
			if err != nil {
				return fmt.Errorf("ask for the version: %w", err)
			}
			return c.Print(v, func() error {
				fmt.Fprintln(c.Out, "runtime  ", v.RuntimeName, v.RuntimeVersion)
				for _, row := range programs(ctx, rt) {
					fmt.Fprintln(c.Out, row)
				}
				_, err := fmt.Fprintf(c.Out, "API       runtime.%s (%s)\n", rt.APIVersion(), rt.Endpoint())
				return err
			})
		},
	}
	c.FormatFlag(cmd)
	return cmd
}

// programs returns lines with the versions of Kuri's processes other than the daemon. Other
// runtimes have none.
func programs(ctx context.Context, rt *client.Runtime) []string {
	st, err := rt.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return nil
	}
	var all map[string]struct {
		Pid     int    `json:"pid"`
		Version string `json:"version"`
	}
	if json.Unmarshal([]byte(st.Info["programs"]), &all) != nil {
		return nil
	}
	var rows []string
	for _, name := range []string{"keeper", "holder"} {
		if p := all[name]; p.Pid != 0 {
			rows = append(rows, fmt.Sprintf("%-9s %s (process %d)", name, cli.Printable(p.Version), p.Pid))
		}
	}
	return rows
}
