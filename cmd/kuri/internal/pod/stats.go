package pod

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// The additional values of --sort for kuri stats.
const (
	byCPU    = "cpu"
	byMemory = "memory"
	byDisk   = "disk"
)

func StatsCommand(c *cli.CLI) *cobra.Command {
	var follow, full bool
	var order string
	var period time.Duration
	cmd := &cobra.Command{
		Use:   "stats [NAME...]",
		Short: "Show the resource usage of containers: CPU, memory, disk",
		Long: `Show what running containers use, all of them or those of the pods and containers that are named. CPU is that of the last
--period, in percent of one core. With -f the table is shown again after each period.`,
		ValidArgsFunction: c.CompleteNames(cli.AnyNumber),
		RunE: func(cmd *cobra.Command, names []string) error {
			switch {
			case !slices.Contains([]string{byCPU, byMemory, byDisk, cli.ByName}, order):
				return cli.Usagef("--sort %q: expected cpu, memory, disk, name", order)
			case period < 100*time.Millisecond:
				return cli.Usagef("--period %s: expected 100ms or more", period)
			}
			ctx := cmd.Context()
			rt, err := c.Runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			before, _, err := sample(ctx, c, rt, names)
			if err != nil {
				return err
			}
			if len(before) == 0 && len(names) > 0 {
				fmt.Fprintf(c.Err, "kuri: no container of %s is running\n", cli.Printable(strings.Join(names, ", ")))
			}
			for {
				if !c.Tabular() {
					return c.Print(&runtimeapi.ListContainerStatsResponse{Stats: before}, nil)
				}
				select {
				case <-ctx.Done():
					return context.Cause(ctx)
				case <-time.After(period):
				}
				now, have, err := sample(ctx, c, rt, names)
				if err != nil {
					return err
				}
				if err := cli.Table(c.Out, statsRows(have, usages(before, now, order), full)); err != nil || !follow {
					return err
				}
				before = now
				fmt.Fprintln(c.Out)
			}
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on until interrupted")
	f.BoolVar(&full, "no-trunc", false, "print ids in full")
	f.DurationVar(&period, "period", time.Second, "`TIME` over which CPU is measured")
	f.StringVar(&order, "sort", byCPU, "`ORDER`: cpu, memory, disk, name")
	c.FormatFlag(cmd)
	c.EndWithReader(cmd, func() bool { return follow })
	return cmd
}

// sample returns the statistics of the running containers that the names mean, or of all if there
// are no names.
func sample(ctx context.Context, c *cli.CLI, rt *client.Runtime,
	names []string) ([]*runtimeapi.ContainerStats, *cli.Inventory, error) {
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return nil, nil, err
	}
	wanted := map[string]bool{}
	for _, name := range names {
		pod, ct, err := have.PodOrContainer(name)
		if err != nil {
			return nil, nil, err
		}
		if pod != nil {
			for _, ct := range have.ContainersIn(pod, have.Containers) {
				wanted[ct.Id] = true
			}
		} else {
			wanted[ct.Id] = true
		}
	}
	var out []*runtimeapi.ContainerStats
	for _, ct := range have.Containers {
		if cli.IsNotRunning(ct) || len(names) > 0 && !wanted[ct.Id] {
			continue
		}
		// One by one: a list may be some seconds old, and two lists may be identical.
		st, err := rt.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: ct.Id})
		switch {
		case cli.IsGone(err):
		case err != nil:
			return nil, nil, fmt.Errorf("ask for the statistics of %s: %w", have.ContainerText(ct), err)
		case st.GetStats() != nil:
			out = append(out, st.Stats)
		}
	}
	return out, have, nil
}

// usage is the resource usage of one container.
type usage struct {
	id, name           string
	cpu                float64 // percent of one core; negative if unknown
	memory, disk, inos uint64  // bytes, bytes, files
}

// usages compares two samples. A container that is only in the second one has no CPU value yet.
func usages(before, now []*runtimeapi.ContainerStats, order string) []usage {
	var out []usage
	for _, s := range now {
		u := usage{
			id: s.GetAttributes().GetId(), name: s.GetAttributes().GetMetadata().GetName(), cpu: -1,
			memory: s.GetMemory().GetWorkingSetBytes().GetValue(),
			disk:   s.GetWritableLayer().GetUsedBytes().GetValue(), inos: s.GetWritableLayer().GetInodesUsed().GetValue(),
		}
		for _, b := range before {
			if b.GetAttributes().GetId() == u.id {
				u.cpu = cpuPercent(b.GetCpu(), s.GetCpu())
			}
		}
		out = append(out, u)
	}
	slices.SortStableFunc(out, func(a, b usage) int {
		switch order {
		case byMemory:
			return cmp.Compare(b.memory, a.memory)
		case byDisk:
			return cmp.Compare(b.disk, a.disk)
		case cli.ByName:
			return cmp.Compare(a.name, b.name)
		}
		return cmp.Or(cmp.Compare(b.cpu, a.cpu), cmp.Compare(b.memory, a.memory))
	})
	return out
}

// cpuPercent returns the CPU usage between two samples in percent of one core, or -1 if it is unknown.
func cpuPercent(before, now *runtimeapi.CpuUsage) float64 {
	elapsed := now.GetTimestamp() - before.GetTimestamp()
	first, last := before.GetUsageCoreNanoSeconds(), now.GetUsageCoreNanoSeconds()
	if elapsed <= 0 || first == nil || last == nil || last.Value < first.Value {
		if cores := now.GetUsageNanoCores(); cores != nil {
			return float64(cores.Value) / 1e9 * 100
		}
		return -1
	}
	return float64(last.Value-first.Value) / float64(elapsed) * 100
}

func statsRows(v *cli.Inventory, list []usage, full bool) [][]string {
	rows := [][]string{{"CONTAINER", "POD", "NAME", "CPU", "MEMORY", "DISK", "FILES"}}
	for _, u := range list {
		pod := ""
		if i := slices.IndexFunc(v.Containers, func(ct *runtimeapi.Container) bool { return ct.Id == u.id }); i >= 0 {
			if p := v.PodOf(v.Containers[i]); p != nil {
				pod = cli.PodName(p)
			}
		}
		cpu := ""
		if u.cpu >= 0 {
			cpu = fmt.Sprintf("%.1f%%", u.cpu)
		}
		rows = append(rows, []string{cli.TrimID(u.id, full), pod, u.name, cpu, cli.Size(u.memory), cli.Size(u.disk),
			fmt.Sprint(u.inos)})
	}
	return rows
}
