package node

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func InfoCommand(c *cli.CLI) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Show whether the runtime is ready, its features and its configuration",
		Long: `Print the runtime at a glance: its conditions, versions, node, storage, network, handlers, features, and how much is there. What
a runtime does not tell is left out. -o json has all that it tells, -o wide also the keys that there is no line for.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			i, err := askInfo(cmd.Context(), c)
			if err != nil {
				return err
			}
			return c.Print(i.data(), func() error {
				if err := cli.Table(c.Out, i.rows()); err != nil || c.Format != cli.FormatWide {
					return err
				}
				return printInfo(c, i.status.Info)
			})
		},
	}
	c.FormatFlag(cmd)
	return cmd
}

// info is a runtime's information about itself.
type info struct {
	endpoint, api           string // of the RuntimeService
	imageEndpoint, imageAPI string
	version                 *runtimeapi.VersionResponse
	status                  *runtimeapi.StatusResponse
	config                  *runtimeapi.RuntimeConfigResponse
	usage                   *runtimeapi.ImageFsInfoResponse
	pods, ready             int
	containers, running     int
	images                  int
}

// askInfo gets all fields from the runtime.
func askInfo(ctx context.Context, c *cli.CLI) (*info, error) {
	rt, err := c.Runtime(ctx)
	if err != nil {
		return nil, err
	}
	defer rt.Close()
	img, err := c.Images(ctx)
	if err != nil {
		return nil, err
	}
	defer img.Close()
	i := &info{endpoint: rt.Endpoint(), api: rt.APIVersion(), imageEndpoint: img.Endpoint(), imageAPI: img.APIVersion()}
	if i.version, err = rt.Version(ctx, &runtimeapi.VersionRequest{}); err != nil {
		return nil, fmt.Errorf("ask for the version: %w", err)
	}
	if i.status, err = rt.Status(ctx, &runtimeapi.StatusRequest{Verbose: true}); err != nil {
		return nil, fmt.Errorf("ask for the status: %w", err)
	}
	i.config, err = rt.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
	if status.Code(err) == codes.Unimplemented { // an older runtime
		i.config, err = &runtimeapi.RuntimeConfigResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the configuration: %w", err)
	}
	if i.usage, err = img.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}); err != nil {
		return nil, fmt.Errorf("ask for the image filesystems: %w", err)
	}
	return i, i.count(ctx, rt, img)
}

// count counts the objects in the lists.
func (i *info) count(ctx context.Context, rt *client.Runtime, img *client.Images) error {
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return err
	}
	list, err := img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	i.pods, i.containers, i.images = len(have.Pods), len(have.Containers), len(list.Images)
	for _, p := range have.Pods {
		if p.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			i.ready++
		}
	}
	for _, ct := range have.Containers {
		if ct.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			i.running++
		}
	}
	return nil
}

// data returns all fields for programs.
func (i *info) data() map[string]any {
	return map[string]any{
		"version": i.version, "status": i.status.Status, "runtimeHandlers": anys(i.status.RuntimeHandlers),
		"features": orEmpty(i.status.Features),
		"info":     cli.UnpackInfo(i.status.Info), "runtimeConfig": i.config, "imageFsInfo": i.usage,
		"counts": map[string]any{
			"pods": i.pods, "readyPods": i.ready, "containers": i.containers, "runningContainers": i.running, "images": i.images,
		},
	}
}

func conditionRows(s *runtimeapi.RuntimeStatus) [][]string {
	var rows [][]string
	for _, cond := range s.GetConditions() {
		text := "yes"
		switch {
		case !cond.Status:
			text = "NO: " + strings.TrimSpace(cond.Reason+" "+cond.Message)
		case cond.Message != "": // it is true, with a reservation
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
		rows = append(rows, []string{what, fmt.Sprintf("%s in %d files, %s", cli.Size(fs.GetUsedBytes().GetValue()),
			fs.GetInodesUsed().GetValue(), fs.GetFsId().GetMountpoint())})
	}
	return rows
}

// printInfo prints the runtime's information beyond the API.
func printInfo(c *cli.CLI, info map[string]string) error {
	unpacked := cli.UnpackInfo(info)
	for _, key := range slices.Sorted(maps.Keys(unpacked)) {
		raw, err := json.MarshalIndent(unpacked[key], "", "  ")
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(c.Out, "\n%s: %s\n", cli.Printable(key), raw); err != nil {
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

// orEmpty replaces a missing message, which would be printed as null.
func orEmpty(f *runtimeapi.RuntimeFeatures) *runtimeapi.RuntimeFeatures {
	if f == nil {
		return &runtimeapi.RuntimeFeatures{}
	}
	return f
}
