package main

import (
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *cli) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "version",
		Short:             "Print the versions of kuri, of the runtime, and of the API between them",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if c.tabular() {
				fmt.Fprintln(c.out, "kuri     ", version)
			}
			rt, err := c.runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			v, err := rt.Version(ctx, &runtimeapi.VersionRequest{})
			if err != nil {
				return fmt.Errorf("ask for the version: %w", err)
			}
			return c.print(v, func() error {
				fmt.Fprintln(c.out, "runtime  ", v.RuntimeName, v.RuntimeVersion)
				_, err := fmt.Fprintf(c.out, "API       runtime.%s (%s)\n", rt.APIVersion(), rt.Endpoint())
				return err
			})
		},
	}
	c.formatFlag(cmd)
	return cmd
}
