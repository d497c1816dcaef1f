package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/pod"
)

// wipe is one call of kuri wipe.
type wipe struct {
	*cli.CLI
	rt  *client.Runtime
	img *client.Images

	yes, keepImages bool
	grace           int64
	kurid           string // path of the configuration for a temporary daemon; "" for the default
}

func WipeCommand(c *cli.CLI) *cobra.Command {
	w := &wipe{CLI: c}
	cmd := &cobra.Command{
		Use:   "wipe",
		Short: "Remove all pods, images and networks, so that the node starts afresh",
		Long: `wipe lists everything of Kuri on this node, asks, and removes it: all pods with their containers, volumes and logs of
kuri run, all images, the built-in network with its rules, and what kuri doctor finds. Containers that run are stopped with
their grace period first. The configuration stays.

It works while the daemon runs, and while it is stopped: then it starts one for itself, which nobody else can reach. A kubelet
makes its pods again: stop it first. This needs Kuri's own runtime.

Exit codes: 0 everything was removed, or the answer was no; 1 something could not be removed; 2 wrong usage, or there is no
terminal to ask on and no --yes; 4 no runtime answers and none can be started.`,
		Example: `  kuri wipe                        tell, ask, and remove
  kuri wipe --yes --keep-images    for scripts; images stay
  kuri wipe --yes -g 0             containers are killed`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if w.grace < pod.OwnGrace {
				return cli.Usagef("--grace %d: expected seconds, 0 to kill at once, or -1 for the container's own", w.grace)
			}
			if !w.yes && !c.TerminalIn() {
				return cli.Usagef("there is no terminal to ask on: --yes removes everything without a question")
			}
			return w.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&w.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&w.keepImages, "keep-images", false, "leave the images")
	f.Int64VarP(&w.grace, "grace", "g", pod.OwnGrace,
		"seconds between SIGTERM and SIGKILL; -1 for the container's own, or 30")
	f.StringVar(&w.kurid, "kurid-config", "",
		"`FILE` with the daemon's configuration, for while it is stopped (default: the daemon's own)")
	return cmd
}

func (w *wipe) run(ctx context.Context) error {
	// 1. Connect to the daemon, or start one.
	done, err := w.connect(ctx)
	if err != nil {
		return err
	}
	defer done()

	// 2. Show everything that would be removed, and ask.
	agreed, err := w.ask(ctx)
	if err != nil || !agreed {
		return err
	}

	// 3. Remove pods, until no new ones appear.
	if err := w.removePods(ctx); err != nil {
		return err
	}

	// 4. Remove images, the network, and leftovers.
	if !w.keepImages {
		if err := w.removeImages(ctx); err != nil {
			return err
		}
	}
	if err := w.removeNetwork(ctx); err != nil {
		return err
	}
	return w.removeRest(ctx)
}

// connect dials the daemon, or starts one if none answers. done closes the connections and stops a
// started daemon.
func (w *wipe) connect(ctx context.Context) (done func(), err error) {
	rt, err := w.Runtime(ctx)
	var unreachable *client.UnreachableError
	if errors.As(err, &unreachable) && !errors.Is(err, os.ErrPermission) {
		fmt.Fprintln(w.Err, "kuri: kurid is not running: starting one on a private socket")
		return w.connectAlone(ctx)
	}
	if err != nil {
		return nil, err
	}
	w.rt = rt
	if w.img, err = w.Images(ctx); err != nil {
		rt.Close()
		return nil, err
	}
	return func() { w.img.Close(); w.rt.Close() }, nil
}

// aloneLimit bounds the start of a temporary daemon.
const aloneLimit = time.Minute

// connectAlone starts a temporary daemon on a private socket.
func (w *wipe) connectAlone(ctx context.Context) (done func(), err error) {
	dir, err := os.MkdirTemp("", "kuri-wipe-")
	if err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "kuri.sock")
	cmd, err := kuridCommand(context.WithoutCancel(ctx), w.kurid, "alone", "--listen", socket)
	if err != nil {
		os.RemoveAll(dir)
		return nil, cli.WithCode(err, cli.ExitUnreachable)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	hold, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, cli.WithCode(fmt.Errorf("start kurid: %w", err), cli.ExitUnreachable)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop := sync.OnceFunc(func() {
		hold.Close() // makes the daemon exit
		<-ended
		os.RemoveAll(dir)
	})
	err = w.dialAlone(ctx, socket, ended)
	if err != nil {
		stop()
		return nil, cli.WithCode(fmt.Errorf("start kurid: %w: %s", err, strings.TrimSpace(said.String())),
			cli.ExitUnreachable)
	}
	return func() { w.img.Close(); w.rt.Close(); stop() }, nil
}

// dialAlone waits until the daemon serves or has exited.
func (w *wipe) dialAlone(ctx context.Context, socket string, ended chan error) error {
	s, err := w.Settings()
	if err != nil {
		return err
	}
	deadline := time.Now().Add(aloneLimit)
	for !isSocket(socket) {
		select {
		case err := <-ended:
			ended <- err
			return errors.Join(errors.New("it has ended"), err)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it does not serve after %s", aloneLimit)
		}
	}
	o := client.Options{Timeout: s.Timeout}
	if w.rt, err = client.DialRuntime(ctx, "unix://"+socket, o); err != nil {
		return err
	}
	if w.img, err = client.DialImages(ctx, "unix://"+socket, o); err != nil {
		w.rt.Close()
	}
	return err
}

func isSocket(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode()&os.ModeSocket != 0
}

// ask prints the objects to remove, and reports whether the user agrees.
func (w *wipe) ask(ctx context.Context) (bool, error) {
	found, err := w.rt.Doctor.Examine(ctx, &kuriv1.ExamineRequest{})
	if err != nil {
		return false, cli.NeedsKuri(w.img, "wiping a node", err)
	}
	have, err := cli.TakeInventory(ctx, w.rt)
	if err != nil {
		return false, err
	}
	images, err := w.img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return false, err
	}
	running, taken := 0, uint64(0)
	for _, ct := range have.Containers {
		if ct.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			running++
		}
	}
	for _, i := range images.Images {
		taken += i.Size
	}
	fmt.Fprintln(w.Out, "This is removed from the node:")
	fmt.Fprintf(w.Out, "  %s with %s, %d running\n", cli.Count(len(have.Pods), "pod"),
		cli.Count(len(have.Containers), "container"), running)
	for _, p := range have.Pods {
		fmt.Fprintln(w.Out, "    "+cli.Printable(cli.PodText(p)))
	}
	if w.keepImages {
		fmt.Fprintf(w.Out, "  no images: %d are kept\n", len(images.Images))
	} else {
		fmt.Fprintf(w.Out, "  %s, at most %s\n", cli.Count(len(images.Images), "image"), cli.Size(taken))
	}
	fmt.Fprintln(w.Out, "  the built-in network: its bridge, its addresses and its nftables rules")
	fmt.Fprintf(w.Out, "  %s without an owner or broken (kuri doctor lists them)\n", cli.Count(len(found.Damages), "item"))
	fmt.Fprintln(w.Out, "The configuration stays.")
	if w.yes || w.Confirmed(ctx, "remove all of it? [y/N] ") {
		return true, nil
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	fmt.Fprintln(w.Out, "nothing was removed")
	return false, nil
}

// wipeRounds is the number of attempts to remove pods that are created again meanwhile.
const wipeRounds = 3

// wipeLanes is the number of pods that are stopped concurrently.
const wipeLanes = 16

// removePods stops and removes all pods.
func (w *wipe) removePods(ctx context.Context) error {
	for range wipeRounds {
		have, err := cli.TakeInventory(ctx, w.rt)
		if err != nil {
			return err
		}
		if len(have.Pods) == 0 {
			return nil
		}
		turns := make(chan struct{}, wipeLanes)
		errs := make([]error, len(have.Pods))
		var all sync.WaitGroup
		for i, p := range have.Pods {
			turns <- struct{}{}
			all.Go(func() {
				defer func() { <-turns }()
				errs[i] = w.removeOne(ctx, have, p)
			})
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		fmt.Fprintln(w.Out, "removed", cli.Count(len(have.Pods), "pod"))
	}
	return errors.New("new pods appear while the old ones are removed, probably made by a kubelet: stop it first, and wipe again")
}

func (w *wipe) removeOne(ctx context.Context, have *cli.Inventory, p *runtimeapi.PodSandbox) error {
	defer pod.NoteSlowStop(w.CLI, p, nil)()
	if err := pod.Stop(ctx, w.CLI, w.rt, have, p, w.grace); err != nil {
		return fmt.Errorf("%s: %w", cli.PodName(p), err)
	}
	if err := pod.Remove(ctx, w.CLI, w.rt, p); err != nil {
		return fmt.Errorf("%s: %w", cli.PodName(p), err)
	}
	return nil
}

// removeImages removes all images, including pinned ones.
func (w *wipe) removeImages(ctx context.Context) error {
	list, err := w.img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	for _, i := range list.Images {
		if _, err := w.img.RemoveImage(ctx,
			&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}}); err != nil && !cli.IsGone(err) {
			return fmt.Errorf("remove image %s: %w", cli.TrimID(i.Id, false), err)
		}
	}
	fmt.Fprintln(w.Out, "removed", cli.Count(len(list.Images), "image"))
	return nil
}

func (w *wipe) removeNetwork(ctx context.Context) error {
	r, err := w.rt.Network.Prune(ctx, &kuriv1.PruneNetworkRequest{})
	if err != nil {
		return fmt.Errorf("remove the network: %w", err)
	}
	if len(r.Users) > 0 {
		return fmt.Errorf("the network was kept: new pods use it: %s", strings.Join(r.Users, ", "))
	}
	fmt.Fprintln(w.Out, "removed the built-in network")
	return nil
}

// removeRest removes leftovers without an owner, and prints those that remain.
func (w *wipe) removeRest(ctx context.Context) error {
	r, err := w.rt.Doctor.Examine(ctx, &kuriv1.ExamineRequest{Fix: true})
	if err != nil {
		return fmt.Errorf("look for leftovers: %w", err)
	}
	left := &kuriv1.ExamineResponse{Blind: r.Blind}
	for _, d := range r.Damages {
		if !d.Fixed {
			left.Damages = append(left.Damages, d)
		}
	}
	if len(left.Damages)+len(left.Blind) == 0 {
		fmt.Fprintln(w.Out, "the node is as it was before Kuri ran a pod on it")
		return nil
	}
	if err := damageText(w.CLI, left); err != nil {
		return err
	}
	return fmt.Errorf("%s could not be removed", cli.Count(len(left.Damages)+len(left.Blind), "item"))
}
