package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/crilog"
)

func LogsCommand(c *cli.CLI) *cobra.Command {
	var follow, stamps, previous bool
	var tail int
	var since, of string
	cmd := &cobra.Command{
		Use:   "logs NAME...",
		Short: "Print the logs of containers, or of all containers of pods",
		Long: `Print the logs of containers, or of all containers of pods, with their names before each line where there are several.
What a container wrote to its standard error goes to standard error. The files are read on this node, the rotated ones too.`,
		Example: `  kuri logs web              all containers of the pod web
  kuri logs -f -n 20 web     the last 20 lines of each, and what follows
  kuri logs -c server web    one of them, as web/server names it too`,
		Args:              cli.SomeNames(1),
		ValidArgsFunction: c.CompleteNames(cli.AnyNumber),
		RunE: func(cmd *cobra.Command, names []string) error {
			ctx := cmd.Context()
			from, err := parseSince(since, time.Now())
			if err == nil && tail < crilog.All {
				err = fmt.Errorf("--tail %d: expected a number of lines, or -1 for all", tail)
			}
			if err != nil {
				return cli.WrongUsage(err)
			}
			for i := range names {
				if of != "" {
					names[i] += "/" + of
				}
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
			list, err := logged(have, names, previous)
			if err != nil {
				return err
			}
			p := &LogPrinter{Out: c.Out, Err: c.Err, stamps: stamps}
			return readAll(ctx, rt, sources(have, list, p), crilog.Options{Tail: tail, Since: from}, follow)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&follow, "follow", "f", false, "go on until the containers have ended")
	f.BoolVarP(&previous, "previous", "p", false, "of the attempt before the latest one, which has ended")
	f.BoolVar(&stamps, "timestamps", false, "print when each line was written")
	f.StringVarP(&of, "container", "c", "", "`CONTAINER` of the pods that are named, as POD/CONTAINER names it too")
	f.IntVarP(&tail, "tail", "n", crilog.All, "print the last `LINES` of each log only; -1 for all")
	f.StringVar(&since, "since", "", "print entries newer than `TIME`: a duration such as 10m, or a time in RFC 3339")
	c.EndWithReader(cmd, func() bool { return follow })
	return cmd
}

// parseSince returns the time that a value of --since means.
func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, errors.New("--since " + strconv.Quote(s) +
			": expected a duration such as 10m or a time such as 2026-01-02T15:04:05Z")
	}
	return t, nil
}

// logged returns the containers whose logs the names mean, each once: all of a pod, or a single
// one. With previous it returns their previous attempts.
func logged(v *cli.Inventory, names []string, previous bool) ([]*runtimeapi.Container, error) {
	var list []*runtimeapi.Container
	for _, name := range names {
		pod, ct, err := v.PodOrContainer(name)
		if err != nil {
			return nil, err
		}
		of := []*runtimeapi.Container{ct}
		if pod != nil {
			of = v.ContainersIn(pod, v.Containers)
		}
		if len(of) == 0 {
			return nil, cli.NotFound("pod %s has no containers", name)
		}
		if previous {
			if of = before(v, of); len(of) == 0 {
				return nil, cli.NotFound("%s: no attempt before the latest one is there", name)
			}
		}
		for _, ct := range of {
			if !slices.Contains(list, ct) {
				list = append(list, ct)
			}
		}
	}
	return list, nil
}

// before returns the previous attempt of each container that has one. The attempts of a pod whose
// sandbox was created again are in several sandboxes.
func before(v *cli.Inventory, list []*runtimeapi.Container) []*runtimeapi.Container {
	var out []*runtimeapi.Container
	for _, ct := range list {
		var last *runtimeapi.Container
		for _, o := range v.Containers {
			if o.GetMetadata().GetName() != ct.GetMetadata().GetName() || !samePod(v, o, ct) {
				continue
			}
			attempt := o.GetMetadata().GetAttempt()
			if attempt < ct.GetMetadata().GetAttempt() && (last == nil || attempt > last.GetMetadata().GetAttempt()) {
				last = o
			}
		}
		if last != nil {
			out = append(out, last)
		}
	}
	return out
}

// samePod reports whether two containers belong to one pod, possibly in different sandboxes.
func samePod(v *cli.Inventory, a, b *runtimeapi.Container) bool {
	if a.PodSandboxId == b.PodSandboxId {
		return true
	}
	p, q := v.PodOf(a), v.PodOf(b)
	return p != nil && q != nil && p.GetMetadata().GetUid() != "" && p.GetMetadata().GetUid() == q.GetMetadata().GetUid()
}

// sources returns the logs of containers for a printer. If there are several, lines are prefixed
// with the container's name, and also with the pod's if there are several pods.
func sources(v *cli.Inventory, list []*runtimeapi.Container, to *LogPrinter) []*LogSource {
	pods := map[string]bool{}
	for _, ct := range list {
		pods[ct.PodSandboxId] = true
	}
	var out []*LogSource
	for _, ct := range list {
		s := &LogSource{ID: ct.Id, Printer: to}
		if len(list) > 1 {
			s.Prefix = ct.GetMetadata().GetName()
		}
		if p := v.PodOf(ct); p != nil && len(pods) > 1 {
			s.Prefix = cli.PodName(p) + "/" + s.Prefix
		}
		out = append(out, s)
	}
	return out
}

// readAll prints the logs of several containers: one after the other, or concurrently if they are followed.
func readAll(ctx context.Context, rt *client.Runtime, sources []*LogSource, o crilog.Options, follow bool) error {
	if !follow {
		for _, s := range sources {
			if err := s.Read(ctx, rt, o); err != nil {
				return err
			}
		}
		return nil
	}
	var wg sync.WaitGroup
	errs := make([]error, len(sources))
	for i, s := range sources {
		wg.Go(func() { errs[i] = s.Follow(ctx, rt, o) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// LogSource is the log of one container and its printer.
type LogSource struct {
	ID      string
	Prefix  string // before each line; "" for none
	Printer *LogPrinter

	started map[crilog.Stream]bool   // whether a line has been printed in part
	held    map[crilog.Stream][]byte // the beginning of a line that is printed once complete
}

func (s *LogSource) Read(ctx context.Context, rt *client.Runtime, o crilog.Options) error {
	path, err := s.path(ctx, rt)
	if err != nil {
		return err
	}
	return errors.Join(crilog.Read(ctx, path, o, s.entry), s.flush())
}

// Follow reads until the container has exited or was removed.
func (s *LogSource) Follow(ctx context.Context, rt *client.Runtime, o crilog.Options) error {
	o.Follow = func(ctx context.Context) (bool, error) {
		st, err := StatusThroughRestarts(ctx, rt, s.ID)
		if cli.IsGone(err) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("ask for the container: %w", err)
		}
		state := st.GetState()
		return state != runtimeapi.ContainerState_CONTAINER_CREATED &&
			state != runtimeapi.ContainerState_CONTAINER_RUNNING, nil
	}
	return s.Read(ctx, rt, o)
}

func (s *LogSource) path(ctx context.Context, rt *client.Runtime) (string, error) {
	st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: s.ID})
	if err != nil {
		return "", fmt.Errorf("ask for the container: %w", err)
	}
	if st.GetStatus().GetLogPath() == "" {
		return "", cli.NotFound("container %s keeps no log", st.GetStatus().GetMetadata().GetName())
	}
	return st.GetStatus().GetLogPath(), nil
}

// maxHeld bounds an incomplete line that is held, in bytes. A longer line is printed in pieces.
const maxHeld = 256 << 10

// entry prints one entry of the log. With a prefix a line is printed once it is complete, because
// lines of other containers may come in between. Without a prefix it is printed as it arrives.
func (s *LogSource) entry(e crilog.Entry) error {
	if s.held == nil {
		s.held, s.started = map[crilog.Stream][]byte{}, map[crilog.Stream]bool{}
	}
	if s.Prefix == "" {
		head := s.Printer.head(e, "")
		if s.started[e.Stream] {
			head = nil
		}
		s.started[e.Stream] = e.Partial
		return s.Printer.write(e.Stream, head, e.Text, !e.Partial)
	}
	held := append(s.held[e.Stream], e.Text...)
	if e.Partial && len(held) < maxHeld {
		s.held[e.Stream] = held
		return nil
	}
	s.held[e.Stream] = nil
	return s.Printer.write(e.Stream, s.Printer.head(e, s.Prefix), held, true)
}

// flush prints the held beginnings of lines that were never completed.
func (s *LogSource) flush() error {
	var errs []error
	for stream, held := range s.held {
		if len(held) > 0 {
			errs = append(errs, s.Printer.write(stream, s.Printer.head(crilog.Entry{Stream: stream}, s.Prefix), held, true))
		}
	}
	s.held = nil
	return errors.Join(errs...)
}

// LogPrinter writes the lines of several logs, each as a whole.
type LogPrinter struct {
	stamps bool

	mu       sync.Mutex // guards the writers
	Out, Err io.Writer
}

// head returns the prefix of a line.
func (p *LogPrinter) head(e crilog.Entry, prefix string) []byte {
	var b bytes.Buffer
	if prefix != "" {
		fmt.Fprintf(&b, "[%s] ", cli.Printable(prefix))
	}
	if p.stamps && !e.Time.IsZero() {
		b.WriteString(e.Time.Format(time.RFC3339Nano) + " ")
	}
	return b.Bytes()
}

func (p *LogPrinter) write(stream crilog.Stream, head, text []byte, end bool) error {
	line := append(bytes.Clone(head), text...)
	if end {
		line = append(line, '\n')
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.Out
	if stream == crilog.Stderr {
		w = p.Err
	}
	_, err := w.Write(line)
	return err
}
