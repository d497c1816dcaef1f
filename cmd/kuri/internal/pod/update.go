package pod

import (
	"errors"
	"fmt"
	"math"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func UpdateCommand(c *cli.CLI) *cobra.Command {
	var memory, cpus string
	var shares int64
	cmd := &cobra.Command{
		Use:   "update [flags] CONTAINER...",
		Short: "Change the limits of running containers",
		Long: `Change the limits of CPU and memory of containers. What is not named stays as it is. They hold until the container ends:
no manifest is changed.`,
		Example: `  kuri update --memory 256m --cpus 1.5 web
  kuri update --cpu-shares 512 web/server`,
		Args:              cli.SomeNames(1),
		ValidArgsFunction: c.CompleteContainers(cli.AnyNumber),
		RunE: func(cmd *cobra.Command, names []string) error {
			limits, err := limitsOf(memory, cpus, shares)
			if err != nil {
				return cli.WrongUsage(err)
			}
			ctx := cmd.Context()
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
			for _, name := range names {
				ct, err := have.Container(name)
				if err == nil {
					_, err = rt.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: ct.Id,
						Linux: limits})
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("update %s: %w", name, err))
					continue
				}
				fmt.Fprintln(c.Out, name)
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVarP(&memory, "memory", "m", "", "limit of memory, `64m` or 64Mi")
	cmd.Flags().StringVar(&cpus, "cpus", "", "limit of CPUs, `1.5`")
	cmd.Flags().Int64Var(&shares, "cpu-shares", 0, "`WEIGHT` among those that compete for CPU, 1024 for one core")
	return cmd
}

// The period of a CPU limit and the bounds of shares, as in kubelets and the kernel.
const (
	cpuPeriod = 100_000 // microseconds
	minShares = 2
	maxShares = 262_144
)

// limitsOf returns the limits from the flags. A field of 0 is not changed.
func limitsOf(memory, cpus string, shares int64) (*runtimeapi.LinuxContainerResources, error) {
	out := &runtimeapi.LinuxContainerResources{CpuShares: shares}
	if memory == "" && cpus == "" && shares == 0 {
		return nil, errors.New("nothing is to be changed: --memory, --cpus or --cpu-shares")
	}
	if shares != 0 && (shares < minShares || shares > maxShares) {
		return nil, fmt.Errorf("--cpu-shares %d: expected %d to %d", shares, minShares, maxShares)
	}
	if memory != "" {
		q, err := cli.ParseBytes(memory)
		if err != nil {
			return nil, fmt.Errorf("--memory %q: %w", memory, err)
		}
		out.MemoryLimitInBytes = q.Value()
	}
	if cpus != "" {
		q, err := resource.ParseQuantity(cpus)
		if err != nil || q.Sign() <= 0 || q.CmpInt64(math.MaxInt32) > 0 {
			return nil, fmt.Errorf("--cpus %q: expected a number such as 1.5", cpus)
		}
		out.CpuPeriod, out.CpuQuota = cpuPeriod, max(q.MilliValue()*cpuPeriod/1000, 1000)
	}
	return out, nil
}
