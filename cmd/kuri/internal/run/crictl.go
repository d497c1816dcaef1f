package run

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/yaml"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/image"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/login"
)

// The verbs for users of crictl, with its files: the CRI's own messages, and one call each.

func SandboxCommand(c *cli.CLI) *cobra.Command {
	var handler string
	cmd := &cobra.Command{
		Use:   "runp POD-CONFIG",
		Short: "Run a pod without containers, from a file of crictl",
		Long: `Run the sandbox of a pod, and print its id. The file is the CRI's PodSandboxConfig, as JSON or YAML, as crictl takes it; of a
manifest of Kubernetes kuri run makes the whole pod.`,
		Example: `  kuri runp pod.json
  kuri runp --runtime runsc pod.json`,
		Args: cli.RangeArgs(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			config := &runtimeapi.PodSandboxConfig{}
			if err := readMessage(ctx, c, args[0], config); err != nil {
				return err
			}
			if config.Metadata == nil || config.Metadata.Name == "" {
				return fmt.Errorf("%s: a metadata.name is needed", args[0])
			}
			if config.Metadata.Uid == "" {
				config.Metadata.Uid = newUID()
			}
			if dir := config.LogDirectory; filepath.IsAbs(dir) {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					return fmt.Errorf("make the log_directory: %w", err)
				}
			}
			rt, err := c.Runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			made, err := rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
			if err != nil {
				return about("run the pod "+config.Metadata.Name, err)
			}
			fmt.Fprintln(c.Out, made.PodSandboxId)
			return nil
		},
	}
	cmd.Flags().StringVar(&handler, "runtime", "", "runtime `HANDLER`")
	return cmd
}

func CreateCommand(c *cli.CLI) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create POD CONTAINER-CONFIG POD-CONFIG",
		Short: "Create a container in a pod, from files of crictl",
		Long: `Create a container in a pod that runs, and print its id; kuri start starts it. The files are the CRI's ContainerConfig and the
pod's PodSandboxConfig, as JSON or YAML, as crictl takes them. The image is pulled when it is missing.`,
		Example: `  kuri create web container.json pod.json`,
		Args:    cli.RangeArgs(3, 3),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return c.CompletePods(1)(cmd, args, prefix)
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return create(cmd.Context(), c, args[0], args[1], args[2])
		},
	}
	login.AuthFileFlag(c, cmd)
	return cmd
}

func create(ctx context.Context, c *cli.CLI, podName, containerFile, podFile string) error {
	config, podConfig := &runtimeapi.ContainerConfig{}, &runtimeapi.PodSandboxConfig{}
	if err := readMessage(ctx, c, containerFile, config); err != nil {
		return err
	}
	if err := readMessage(ctx, c, podFile, podConfig); err != nil {
		return err
	}
	name := config.GetImage().GetImage()
	if name == "" {
		return fmt.Errorf("%s: image.image is needed", containerFile)
	}
	rt, err := c.Runtime(ctx)
	if err != nil {
		return err
	}
	defer rt.Close()
	img, err := c.Images(ctx)
	if err != nil {
		return err
	}
	defer img.Close()
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return err
	}
	pod, err := have.Pod(podName)
	if err != nil {
		return err
	}
	spec := &runtimeapi.ImageSpec{Image: name, RuntimeHandler: pod.RuntimeHandler}
	if st, err := img.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec}); err != nil {
		return fmt.Errorf("look for image %s: %w", name, err)
	} else if st.Image == nil {
		if _, err := image.Pull(ctx, c, img, &runtimeapi.PullImageRequest{Image: spec, SandboxConfig: podConfig,
			Auth: login.AuthFor(ctx, c, name)}); err != nil {
			return err
		}
	}
	if dir := podConfig.LogDirectory; filepath.IsAbs(dir) && filepath.IsLocal(config.LogPath) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, config.LogPath)), 0o755); err != nil {
			return fmt.Errorf("make the directory of the log: %w", err)
		}
	}
	made, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.Id, Config: config,
		SandboxConfig: podConfig})
	if err != nil {
		return about("create container "+config.GetMetadata().GetName(), err)
	}
	fmt.Fprintln(c.Out, made.ContainerId)
	return nil
}

func StartCommand(c *cli.CLI) *cobra.Command {
	return &cobra.Command{
		Use:   "start CONTAINER...",
		Short: "Start containers that kuri create has created",
		Long: `Start containers that have been created and not started yet. The CRI starts a container once: one that has exited is made
anew, by kuri run or kuri create.`,
		Example:           `  kuri start web/server`,
		Args:              cli.SomeNames(1),
		ValidArgsFunction: c.CompleteContainers(cli.AnyNumber),
		RunE: func(cmd *cobra.Command, names []string) error {
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
				if err == nil && ct.State == runtimeapi.ContainerState_CONTAINER_EXITED {
					err = errors.New("it has exited, and a container is started once: remove it, and create it anew")
				} else if err == nil {
					_, err = rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: ct.Id})
				}
				if err != nil {
					errs = append(errs, about("start "+name, err))
					continue
				}
				fmt.Fprintln(c.Out, name)
			}
			return errors.Join(errs...)
		},
	}
}

// protoPrefix begins the errors of protobuf's JSON. The space after it may be a no-break space.
const protoPrefix = "proto:"

// readMessage reads a message of the CRI from a file of JSON or YAML.
func readMessage(ctx context.Context, c *cli.CLI, path string, to proto.Message) error {
	data, err := manifestFile(ctx, c, path)
	if err != nil {
		return err
	}
	what := to.ProtoReflect().Descriptor().Name()
	raw, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return fmt.Errorf("%s is neither JSON nor YAML: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if !strings.HasPrefix(string(raw), "{") { // YAML accepts any text as a string
		return fmt.Errorf("%s is not a %s of the CRI: expected an object with fields such as metadata", path, what)
	}
	if err := protojson.Unmarshal(raw, to); err != nil {
		text := strings.TrimLeft(strings.TrimPrefix(err.Error(), protoPrefix), " \u00a0")
		if _, field, ok := strings.Cut(text, "unknown field "); ok {
			text = "it has no field " + field
		}
		hint := ""
		if strings.Contains(string(raw), `"apiVersion"`) {
			hint = "; this is a manifest of Kubernetes, which kuri run takes"
		}
		return fmt.Errorf("%s is not a %s of the CRI: %s%s", path, what, text, hint)
	}
	return nil
}
