package run

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/crilog"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/image"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/login"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/pod"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/poddir"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/stream"
)

func DebugCommand(c *cli.CLI) *cobra.Command {
	o := &debugOptions{}
	cmd := &cobra.Command{
		Use:   "debug [flags] NAME [-- COMMAND [ARG...]]",
		Short: "Run a debug container of any image in a pod",
		Long: `Run a container of any image in a pod, with the pod's network, IPC and host name, and with the processes of a container of the
pod: it sees them, may trace them (SYS_PTRACE), and finds their files below /proc/1/root. NAME is that container, or the pod,
of which the only container that runs is meant. What is run beside it ends and is removed with the command; with -it it has
this terminal.`,
		Example: `  kuri debug -it web                                 a shell of busybox beside the only container of web
  kuri debug -it --image nicolaka/netshoot web/server
  kuri debug web -- wget -qO- http://127.0.0.1:8080/
  kuri debug web -- ls -l /proc/1/root/etc`,
		Args:              cli.RangeArgs(1, cli.Many),
		ValidArgsFunction: c.CompleteNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.tty && !o.stdin {
				return cli.Usagef("-t gives a terminal to type at, so it goes with -i: -it")
			}
			if !o.stdin && len(args) == 1 {
				return cli.Usagef("which command? kuri debug -it %[1]s for a shell, or kuri debug %[1]s -- COMMAND", args[0])
			}
			return debug(cmd.Context(), c, o, args[0], args[1:])
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.image, "image", "busybox", "`IMAGE` to run; it is pulled when it is missing")
	f.BoolVarP(&o.stdin, "stdin", "i", false, "pass the input on")
	f.BoolVarP(&o.tty, "tty", "t", false, "give it a terminal")
	f.StringVar(&o.target, "target", "",
		"`CONTAINER` of the pod whose processes are seen; none for those of the pod alone")
	f.StringArrayVarP(&o.env, "env", "e", nil, "variable, `NAME=VALUE`")
	f.StringArrayVar(&o.capAdd, "cap-add", nil, "`CAPABILITY` to add to SYS_PTRACE")
	f.BoolVar(&o.privileged, "privileged", false, "all capabilities and devices")
	stream.DetachFlag(cmd, &o.keys)
	c.FreeShortFlags(cmd)
	login.AuthFileFlag(c, cmd)
	return cmd
}

// debugOptions are the flags of kuri debug.
type debugOptions struct {
	image, target, keys    string
	stdin, tty, privileged bool
	env, capAdd            []string
}

// noTarget is the value of --target for no container.
const noTarget = "none"

// debugRun is one invocation of kuri debug.
type debugRun struct {
	*run
	o      *debugOptions
	pod    *runtimeapi.PodSandboxStatus
	target *runtimeapi.Container // nil for none
	logDir string                // of the pod; "" if unknown
	name   string                // of the container
	id     string
}

// debug runs a container in a pod:
//
//  1. find the pod and the target container
//  2. pull the image if it is missing
//  3. create and start the container
//  4. attach our streams, or follow its log, until it exits
//  5. remove it
func debug(ctx context.Context, c *cli.CLI, o *debugOptions, name string, command []string) (err error) {
	keys, err := stream.ParseKeys(o.keys)
	if err != nil {
		return err
	}
	if o.stdin {
		o.tty = stream.WithoutTerminal(c, true, o.tty)
	}
	d := &debugRun{run: &run{CLI: c}, o: o, name: "debug-" + strings.ToLower(rand.Text()[:5])}
	if d.rt, err = c.Runtime(ctx); err != nil {
		return err
	}
	defer d.rt.Close()
	if d.img, err = c.Images(ctx); err != nil {
		return err
	}
	defer d.img.Close()
	if err := d.find(ctx, name); err != nil {
		return err
	}
	image, err := d.pullMissing(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove(ctx)) }()
	if err := d.start(ctx, image, command); err != nil {
		return stream.NotRun(err)
	}
	if o.stdin {
		err := d.attach(ctx, d.id, stream.Options{Stdin: true, TTY: o.tty, Detach: keys})
		if errors.Is(err, stream.ErrDetached) {
			fmt.Fprintf(c.Err, "\nkuri: detached; the debug container beside %s is removed\n", cli.Printable(name))
			return nil
		}
		var exit cli.ExitCode
		if err != nil && !errors.As(err, &exit) {
			return err
		}
		return d.outcome(ctx)
	}
	if d.logDir == "" {
		return d.outcome(ctx)
	}
	source := &pod.LogSource{ID: d.id, Printer: &pod.LogPrinter{Out: c.Out, Err: c.Err}}
	if err := source.Follow(ctx, d.rt, crilog.Options{Tail: crilog.All}); err != nil {
		return err
	}
	return d.outcome(ctx)
}

// find finds the pod and the target.
func (d *debugRun) find(ctx context.Context, name string) error {
	have, err := cli.TakeInventory(ctx, d.rt)
	if err != nil {
		return err
	}
	pod, ct, err := have.PodOrContainer(name)
	if err != nil {
		return err
	}
	if pod == nil {
		if pod = have.PodOf(ct); pod == nil {
			return cli.NotFound("the pod of %s is not there", name)
		}
	}
	switch {
	case d.o.target == noTarget:
	case d.o.target != "":
		if d.target, _, err = have.RunningContainer(cli.PodKey(pod) + "/" + d.o.target); err != nil {
			return err
		}
	case ct != nil && cli.IsNotRunning(ct):
		return fmt.Errorf("%s does not run: kuri debug --target %s %s looks into its pod alone", have.ContainerText(ct),
			noTarget, cli.PodName(pod))
	case ct != nil:
		d.target = ct
	default:
		alive := []*runtimeapi.Container{}
		for _, ct := range have.ContainersIn(pod, have.Containers) {
			if !cli.IsNotRunning(ct) {
				alive = append(alive, ct)
			}
		}
		if len(alive) > 1 {
			return cli.Ambiguous(name, "containers that run", cli.Texts(alive, have.ContainerText))
		}
		if len(alive) == 1 {
			d.target = alive[0]
		}
	}
	if pod.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("pod %s is not ready: nothing can be run in it", cli.PodName(pod))
	}
	st, err := d.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.Id})
	if err != nil {
		return fmt.Errorf("ask for pod %s: %w", cli.PodName(pod), err)
	}
	d.pod = st.Status
	// The CRI reports a pod's log directory only through its containers' logs.
	for _, ct := range have.ContainersIn(pod, have.Containers) {
		st, err := d.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id})
		if path := st.GetStatus().GetLogPath(); err == nil && filepath.IsAbs(path) {
			d.logDir = filepath.Dir(filepath.Dir(path))
		}
	}
	return nil
}

// sandboxConfig returns the parts of the pod's configuration that its status contains.
func (d *debugRun) sandboxConfig() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: d.pod.Metadata, Labels: d.pod.Labels, Annotations: d.pod.Annotations, LogDirectory: d.logDir,
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: d.pod.GetLinux().GetNamespaces().GetOptions(), Privileged: d.o.privileged,
		}},
	}
}

// pullMissing returns the id of the image, which it pulls if it is missing.
func (d *debugRun) pullMissing(ctx context.Context) (string, error) {
	spec := &runtimeapi.ImageSpec{Image: d.o.image, RuntimeHandler: d.pod.RuntimeHandler}
	for pulled := false; ; pulled = true {
		st, err := d.img.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
		switch {
		case err != nil:
			return "", fmt.Errorf("look for image %s: %w", d.o.image, err)
		case st.Image != nil && !image.ByChance(st.Image, d.o.image):
			return st.Image.Id, nil
		case pulled:
			return "", fmt.Errorf("the runtime does not find the image %s which it has just pulled", d.o.image)
		}
		req := &runtimeapi.PullImageRequest{Image: spec, SandboxConfig: d.sandboxConfig(),
			Auth: login.AuthFor(ctx, d.run.CLI, d.o.image)}
		if _, err := image.Pull(ctx, d.run.CLI, d.img, req); err != nil {
			return "", fmt.Errorf("%w\n--image names another one, such as one that is here: kuri images", err)
		}
	}
}

func (d *debugRun) start(ctx context.Context, image string, command []string) error {
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: d.name},
		Image:    &runtimeapi.ImageSpec{Image: image, UserSpecifiedImage: d.o.image},
		Command:  command,
		Labels: map[string]string{
			manifest.LabelPodName: d.pod.GetMetadata().GetName(), manifest.LabelPodNamespace: d.pod.GetMetadata().GetNamespace(),
			manifest.LabelPodUID: d.pod.GetMetadata().GetUid(), manifest.LabelContainerName: d.name,
		},
		Stdin: d.o.stdin, StdinOnce: d.o.stdin, Tty: d.o.tty,
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: d.security()},
	}
	for _, e := range d.o.env {
		name, value, ok := strings.Cut(e, "=")
		if !ok || name == "" {
			return cli.Usagef("--env %q: expected NAME=VALUE", e)
		}
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: name, Value: []byte(value)})
	}
	if d.logDir != "" {
		config.LogPath = d.name + "/0.log"
		if err := os.MkdirAll(filepath.Join(d.logDir, d.name), 0o755); err != nil {
			return fmt.Errorf("make a directory for the log: %w", err)
		}
	}
	made, err := d.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: d.pod.Id, Config: config,
		SandboxConfig: d.sandboxConfig()})
	if err != nil {
		return about("create container "+d.name, err)
	}
	d.id = made.ContainerId
	if _, err := d.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: d.id}); err != nil {
		return about("start container "+d.name, err)
	}
	return nil
}

// security returns a security context with the pod's namespaces, the target's processes, and the
// privileges to inspect them.
func (d *debugRun) security() *runtimeapi.LinuxContainerSecurityContext {
	of := d.pod.GetLinux().GetNamespaces().GetOptions()
	options := &runtimeapi.NamespaceOption{Network: of.GetNetwork(), Pid: of.GetPid(), Ipc: of.GetIpc(),
		UsernsOptions: of.GetUsernsOptions()}
	if d.target != nil && options.Pid == runtimeapi.NamespaceMode_CONTAINER {
		options.Pid, options.TargetId = runtimeapi.NamespaceMode_TARGET, d.target.Id
	}
	s := &runtimeapi.LinuxContainerSecurityContext{
		NamespaceOptions: options, Privileged: d.o.privileged,
		Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"SYS_PTRACE"}},
		Seccomp:      &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	for _, name := range d.o.capAdd {
		s.Capabilities.AddCapabilities = append(s.Capabilities.AddCapabilities, string(capability(name)))
	}
	if d.o.privileged {
		s.Seccomp = nil
	}
	return s
}

// outcome waits for the exit of the container and returns its exit code as an error.
func (d *debugRun) outcome(ctx context.Context) error {
	st, err := pod.WaitExit(ctx, d.rt, d.id)
	if err == nil && st.ExitCode != 0 {
		return cli.ExitCode(st.ExitCode)
	}
	return err
}

// remove removes the container and its log.
func (d *debugRun) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
	defer cancel()
	var errs []error
	if d.id != "" {
		if err := pod.RemoveContainer(ctx, d.rt, d.id); err != nil {
			errs = append(errs, cli.Leftover("remove container %s: %w", d.name, err))
		}
	}
	if d.logDir != "" {
		errs = append(errs, poddir.RemoveBelow(d.logDir, d.name))
	}
	return errors.Join(errs...)
}
