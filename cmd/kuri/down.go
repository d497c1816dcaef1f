package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

func (c *cli) downCommand() *cobra.Command {
	o := &downOptions{}
	cmd := &cobra.Command{
		Use:   "down FILE",
		Short: "Stop and remove the pods of a manifest that kuri run has run",
		Long: `Stop the pods of a manifest, each with its own grace period and its preStop hooks, and remove them with their volumes and
logs. The manifest is read for the names of its pods, so it may have changed otherwise. A pod that is not there is no error.
The directories of PersistentVolumeClaims stay, unless --volumes is given.`,
		Example: `  kuri down web.yaml
  kuri down --volumes db.yaml   with the data of its claims
  kuri down --grace 0 web.yaml`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.grace < ownGrace {
				return usagef("--grace %d: expected seconds, 0 to kill at once, or -1 for the container's own", o.grace)
			}
			return c.down(cmd.Context(), args[0], o)
		},
	}
	cmd.Flags().StringVar(&o.name, "name", "", "`NAME` that kuri run gave the pod, in place of the manifest's")
	cmd.Flags().Int64VarP(&o.grace, "grace", "g", ownGrace, "seconds between SIGTERM and SIGKILL; -1 for the container's own, or 30")
	cmd.Flags().BoolVarP(&o.volumes, "volumes", "v", false, "remove the directories of the claims, too, and what is in them")
	return cmd
}

// downOptions are the flags of kuri down.
type downOptions struct {
	name    string
	grace   int64
	volumes bool
}

func (c *cli) down(ctx context.Context, path string, o *downOptions) error {
	data, err := c.manifestFile(ctx, path)
	if err != nil {
		return err
	}
	refs, err := manifest.Refs(data, o.name)
	if err != nil {
		return fmt.Errorf("%s cannot be read:\n%w", path, err)
	}
	rt, err := c.runtime(ctx)
	if err != nil {
		return err
	}
	defer rt.Close()
	have, err := takeInventory(ctx, rt)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range refs {
		full := r.Namespace + "/" + r.Name
		pods := have.podsNamed(full)
		if len(pods) == 0 {
			fmt.Fprintf(c.err, "kuri: there is no pod %s\n", printable(full))
		}
		for _, p := range pods {
			err := c.downPod(ctx, rt, have, p, o.grace)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", full, err))
				break
			}
			fmt.Fprintln(c.out, podName(p))
		}
		if o.volumes && len(errs) == 0 {
			errs = append(errs, c.removeClaims(r))
		}
	}
	return errors.Join(errs...)
}

func (c *cli) downPod(ctx context.Context, rt *client.Runtime, have *inventory, p *runtimeapi.PodSandbox, grace int64) error {
	if p.Annotations[manifest.AnnotationRun] == "" {
		return errors.New("this pod is not one of kuri run: kuri rm removes it")
	}
	defer c.sayThatItWaits(p, nil)()
	if err := c.stopPod(ctx, rt, have, p, grace); err != nil {
		return err
	}
	return c.removePod(ctx, rt, p)
}
