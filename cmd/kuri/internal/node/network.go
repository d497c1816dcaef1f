package node

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func NetworkCommand(c *cli.CLI) *cobra.Command {
	verbs := cli.CommandGroup(&cobra.Command{
		Use:   "network",
		Short: "Manage Kuri's built-in network: prune",
	})
	verbs.AddCommand(&cobra.Command{
		Use:   "prune",
		Short: "Remove the bridge and the nftables table of the built-in network",
		Long: `Remove the bridge and the nftables table of the built-in network, which no pod may use any more. The next pod brings them
back. Where the daemon does not run, kurid network prune does the same. This needs Kuri's own runtime.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			rt, err := c.Runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			r, err := rt.Network.Prune(ctx, &kuriv1.PruneNetworkRequest{})
			switch {
			case status.Code(err) == codes.Unimplemented:
				return fmt.Errorf("%s is not Kuri's runtime, or is an older one: kuri cannot manage its network", rt.Endpoint())
			case err != nil:
				return fmt.Errorf("remove the network: %w", err)
			case len(r.Users) > 0:
				return fmt.Errorf("the network was kept: pods use it: %s", strings.Join(r.Users, ", "))
			}
			fmt.Fprintln(c.Out, "the built-in network has no bridge and no nftables table on this node")
			return nil
		},
	})
	return verbs
}
