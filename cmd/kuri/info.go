package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (c *cli) infoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "info",
		Short:             "Say whether the runtime is ready, what it can do and how it is configured",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			rt, err := c.runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			v, err := rt.Version(ctx, &runtimeapi.VersionRequest{})
			if err != nil {
				return fmt.Errorf("ask for the version: %w", err)
			}
			st, err := rt.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
			if err != nil {
				return fmt.Errorf("ask for the status: %w", err)
			}
			config, err := rt.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
			if status.Code(err) == codes.Unimplemented { // older runtimes
				config, err = &runtimeapi.RuntimeConfigResponse{}, nil
			}
			if err != nil {
				return fmt.Errorf("ask for the configuration: %w", err)
			}
			img, err := c.images(ctx)
			if err != nil {
				return err
			}
			defer img.Close()
			usage, err := img.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
			if err != nil {
				return fmt.Errorf("ask for the image filesystems: %w", err)
			}
			if !c.tabular() {
				return c.printData(map[string]any{
					"version": v, "status": st.Status, "runtimeHandlers": anys(st.RuntimeHandlers), "features": orEmpty(st.Features),
					"info": unpack(st.Info), "runtimeConfig": config, "imageFsInfo": usage,
				})
			}
			rows := [][]string{
				{"runtime:", fmt.Sprintf("%s %s (runtime.%s, %s)", v.RuntimeName, v.RuntimeVersion, rt.APIVersion(), rt.Endpoint())},
				{"images:", fmt.Sprintf("runtime.%s, %s", img.APIVersion(), img.Endpoint())},
			}
			rows = append(rows, conditionRows(st.Status)...)
			rows = append(rows, []string{"cgroup driver:", driver(config)})
			rows = append(rows, []string{"handlers:", handlers(st.RuntimeHandlers)})
			rows = append(rows, storeRows("image store:", usage.ImageFilesystems)...)
			rows = append(rows, storeRows("container store:", usage.ContainerFilesystems)...)
			if err := table(c.out, rows); err != nil {
				return err
			}
			return c.printInfo(st.Info)
		},
	}
	c.formatFlag(cmd)
	return cmd
}

func conditionRows(s *runtimeapi.RuntimeStatus) [][]string {
	var rows [][]string
	for _, cond := range s.GetConditions() {
		text := "yes"
		switch {
		case !cond.Status:
			text = "NO: " + strings.TrimSpace(cond.Reason+" "+cond.Message)
		case cond.Message != "": // it works, and yet
			text = "yes, but: " + cond.Message
		}
		rows = append(rows, []string{cond.Type + ":", text})
	}
	return rows
}

func driver(r *runtimeapi.RuntimeConfigResponse) string {
	if r.Linux == nil {
		return "not told"
	}
	return strings.ToLower(r.Linux.CgroupDriver.String())
}

func handlers(list []*runtimeapi.RuntimeHandler) string {
	var out []string
	for _, h := range list {
		name := h.Name
		if name == "" {
			name = "(default)"
		}
		var can []string
		if h.GetFeatures().GetRecursiveReadOnlyMounts() {
			can = append(can, "recursive read-only mounts")
		}
		if h.GetFeatures().GetUserNamespaces() {
			can = append(can, "user namespaces")
		}
		if len(can) > 0 {
			name += " with " + strings.Join(can, " and ")
		}
		out = append(out, name)
	}
	return strings.Join(out, "; ")
}

func storeRows(what string, list []*runtimeapi.FilesystemUsage) [][]string {
	var rows [][]string
	for _, fs := range list {
		rows = append(rows, []string{what, fmt.Sprintf("%s in %d files, %s", size(fs.GetUsedBytes().GetValue()), fs.GetInodesUsed().GetValue(), fs.GetFsId().GetMountpoint())})
	}
	return rows
}

// printInfo prints what a runtime tells about itself beyond the API.
func (c *cli) printInfo(info map[string]string) error {
	unpacked := unpack(info)
	for _, key := range slices.Sorted(maps.Keys(unpacked)) {
		raw, err := json.MarshalIndent(unpacked[key], "", "  ")
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(c.out, "\n%s: %s\n", printable(key), raw); err != nil {
			return err
		}
	}
	return nil
}

func anys[T any](list []T) []any {
	out := make([]any, 0, len(list))
	for _, e := range list {
		out = append(out, e)
	}
	return out
}

// orEmpty keeps a message that is not there from becoming null.
func orEmpty(f *runtimeapi.RuntimeFeatures) *runtimeapi.RuntimeFeatures {
	if f == nil {
		return &runtimeapi.RuntimeFeatures{}
	}
	return f
}
