package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/pod"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/poddir"
)

func DownCommand(c *cli.CLI) *cobra.Command {
	o := &downOptions{}
	cmd := &cobra.Command{
		Use:   "down FILE",
		Short: "Stop and remove the pods of a manifest",
		Long: `Stop the pods of a manifest, each with its own grace period and its preStop hooks, and remove them with their volumes and
logs. The manifest is read for the names of its pods, so it may have changed otherwise. A pod that is not there is no error.
The directories of PersistentVolumeClaims stay, unless --volumes is given.`,
		Example: `  kuri down web.yaml
  kuri down --volumes db.yaml   with the data of its claims
  kuri down --grace 0 web.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.file != "" {
				return cli.RangeArgs(0, 0)(cmd, args)
			}
			return cli.RangeArgs(1, 1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.file != "" {
				args = []string{o.file}
			}
			if o.grace < pod.OwnGrace {
				return cli.Usagef("--grace %d: expected seconds, 0 to kill at once, or -1 for the container's own", o.grace)
			}
			return down(cmd.Context(), c, args[0], o)
		},
	}
	cmd.Flags().StringVarP(&o.file, "file", "f", "", "`FILE` with the manifest, - for standard input")
	cmd.Flags().StringVar(&o.name, "name", "", "`NAME` that kuri run gave the pod, in place of the manifest's")
	cmd.Flags().Int64VarP(&o.grace, "grace", "g", pod.OwnGrace, "seconds between SIGTERM and SIGKILL; -1 for the container's own, or 30")
	cmd.Flags().BoolVarP(&o.volumes, "volumes", "v", false, "remove the directories of the claims, too, and what is in them")
	return cmd
}

// downOptions are the flags of kuri down.
type downOptions struct {
	file    string
	name    string
	grace   int64
	volumes bool
}

func down(ctx context.Context, c *cli.CLI, path string, o *downOptions) error {
	data, err := manifestFile(ctx, c, path)
	if err != nil {
		return err
	}
	refs, err := manifest.Refs(data, o.name)
	if err != nil {
		return fmt.Errorf("%s cannot be read:\n%w", manifestName(path), err)
	}
	rt, err := c.Runtime(ctx)
	if err != nil {
		return err
	}
	defer rt.Close()
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range refs {
		if r.GenerateName != "" {
			errs = append(errs, generated(have, r))
			continue
		}
		full := r.Namespace + "/" + r.Name
		pods := have.PodsNamed(full)
		if len(pods) == 0 {
			fmt.Fprintf(c.Err, "kuri: there is no pod %s\n", cli.Printable(full))
		}
		for _, p := range pods {
			err := downPod(ctx, c, rt, have, p, o.grace)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", full, err))
				break
			}
			fmt.Fprintln(c.Out, cli.PodName(p))
		}
		if o.volumes && len(errs) == 0 {
			errs = append(errs, poddir.RemoveClaims(c, r))
		}
	}
	return errors.Join(errs...)
}

// generated returns an error for a pod whose name the file does not have. It lists the candidates, because
// each kuri run of the file has made another pod.
func generated(have *cli.Inventory, r manifest.Ref) error {
	var names []string
	for _, p := range have.Pods {
		if m := p.GetMetadata(); m.GetNamespace() == r.Namespace && strings.HasPrefix(m.GetName(), r.GenerateName) &&
			manifest.ByRun(p.Annotations) {
			names = append(names, m.GetName())
		}
	}
	if len(names) == 0 {
		return cli.NotFound("there is no pod %s/%s…, a name that kuri run generates", r.Namespace, r.GenerateName)
	}
	slices.Sort(names)
	return fmt.Errorf("each kuri run of the file generates a name %s…: give the pod's with --name (there is %s)",
		r.GenerateName, strings.Join(names, ", "))
}

func downPod(ctx context.Context, c *cli.CLI, rt *client.Runtime, have *cli.Inventory, p *runtimeapi.PodSandbox, grace int64) error {
	if !manifest.ByRun(p.Annotations) {
		return errors.New("this pod is not one of kuri run: kuri rm removes it")
	}
	defer pod.NoteSlowStop(c, p, nil)()
	if err := pod.Stop(ctx, c, rt, have, p, grace); err != nil {
		return err
	}
	return pod.Remove(ctx, c, rt, p)
}
