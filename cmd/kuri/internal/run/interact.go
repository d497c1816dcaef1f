package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/crilog"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/pod"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/stream"
)

// runImage runs an image as a pod of one container: in the background, to its end (--rm), or
// interactively (-i).
func runImage(ctx context.Context, c *cli.CLI, o *runOptions, image string, command []string) error {
	keys, err := stream.ParseKeys(o.image.keys)
	if err != nil {
		return err
	}
	if o.rm && o.image.detach {
		return cli.Usagef("--rm removes the pod when its container has ended, and -d does not wait for that: leave out one of them")
	}
	attach := o.image.stdin && !o.image.detach
	if attach {
		o.image.tty = stream.WithoutTerminal(c, true, o.image.tty)
	}
	p, err := o.image.pod(o.name, image, command, c.Env)
	if err != nil {
		return err
	}
	if o.dryRun != "" {
		if name := o.image.userName(); name != "" {
			fmt.Fprintf(c.Err, "kuri: --user %s is not in the manifest: a pod has numbers only\n", name)
		}
		return printPods(c, []*manifest.Pod{p})
	}
	r, err := newRun(ctx, c, []*manifest.Pod{p})
	if err != nil {
		return err
	}
	defer r.close()
	r.change = func(config *runtimeapi.ContainerConfig) {
		if name := o.image.userName(); name != "" {
			config.Linux.SecurityContext.RunAsUsername = name
		}
	}
	if err := r.start(ctx); err != nil {
		return stream.NotRun(errors.Join(fmt.Errorf("%w%s", err, fileInstead(image)), r.remove(ctx)))
	}
	switch {
	case attach:
		return r.interact(ctx, o, keys)
	case o.rm:
		return r.toTheEnd(ctx)
	}
	if err := r.print(ctx, false); err != nil {
		return errors.Join(err, r.remove(ctx))
	}
	if c.Tabular() {
		fmt.Fprintf(c.Err, "kuri: it runs in the background: kuri logs -f %[1]s, kuri exec -it %[1]s sh, kuri rm -f %[1]s\n", p.Name())
	}
	return nil
}

// fileInstead returns a hint if the name of the image resembles that of a manifest in the directory.
func fileInstead(image string) string {
	for _, ext := range manifestExtensions {
		if info, err := os.Stat(image + ext); err == nil && !info.IsDir() {
			return fmt.Sprintf("\n%s was taken for an image, and there is a file %[1]s%[2]s: kuri run %[1]s%[2]s", image, ext)
		}
	}
	return ""
}

// interact connects our streams to the only container of the run until it exits or the user
// detaches, and returns its exit code.
func (r *run) interact(ctx context.Context, o *runOptions, keys []byte) error {
	p := r.pods[0]
	id := p.containers[0].id
	if o.image.tty && len(keys) > 0 {
		fmt.Fprintf(r.Err, "kuri: %s leaves %s running\n", cli.Printable(o.image.keys), p.Name())
	}
	err := r.attach(ctx, id, stream.Options{Stdin: true, TTY: o.image.tty, Detach: keys})
	if errors.Is(err, stream.ErrDetached) {
		fmt.Fprintf(r.Err, "\nkuri: detached; %[1]s keeps running: kuri attach -it %[1]s, kuri rm -f %[1]s\n", p.Name())
		return nil
	}
	var code int32
	var exit cli.ExitCode
	if errors.As(err, &exit) {
		err = nil
	}
	if ctx.Err() != nil {
		fmt.Fprintln(r.Err, "kuri: stopping; once more to kill")
		err = errors.Join(ctx.Err(), r.stop(ctx, []string{id}))
	}
	if err == nil {
		var st *runtimeapi.ContainerStatus
		if st, err = pod.WaitExit(ctx, r.rt, id); err == nil {
			code = st.ExitCode
		}
	}
	if o.rm {
		err = errors.Join(err, r.remove(ctx))
	} else {
		fmt.Fprintf(r.Err, "kuri: the pod %[1]s is still there: kuri rm -f %[1]s\n", p.Name())
	}
	if err != nil {
		return err
	}
	if code != 0 {
		return cli.ExitCode(code)
	}
	return nil
}

// attach attaches to a container that has just been started. If the container exits before any
// output arrives here, its log is shown: it may have printed everything before we were attached.
func (r *run) attach(ctx context.Context, id string, want stream.Options) error {
	resp, err := r.rt.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: !want.TTY, Tty: want.TTY})
	if err == nil {
		heard := &counter{to: r.Out}
		with := *r.CLI
		with.Out = heard
		err = stream.Annotate("attach", stream.Copy(ctx, &with, resp.Url, want))
		if errors.Is(err, stream.ErrDetached) || ctx.Err() != nil || heard.bytes.Load() > 0 {
			return err
		}
	}
	if !r.endsNow(ctx, id) {
		return err
	}
	if st, statusErr := pod.StatusThroughRestarts(ctx, r.rt, id); statusErr == nil && st.GetLogPath() == "" {
		return nil // it has exited, and its output is not stored anywhere
	}
	return (&pod.LogSource{ID: id, Printer: &pod.LogPrinter{Out: r.Out, Err: r.Err}}).Read(ctx, r.rt, crilog.Options{Tail: crilog.All})
}

// endsNow reports whether a container has exited or does so within logDrainLimit.
func (r *run) endsNow(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, logDrainLimit)
	defer cancel()
	_, err := pod.WaitExit(ctx, r.rt, id)
	return err == nil
}

// counter counts the bytes written to it.
type counter struct {
	to    io.Writer
	bytes atomic.Int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.bytes.Add(int64(len(p)))
	return c.to.Write(p)
}
