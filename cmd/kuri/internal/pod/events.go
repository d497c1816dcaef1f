package pod

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func EventsCommand(c *cli.CLI) *cobra.Command {
	var follow, full bool
	var pod string
	var count int
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print events of pods and containers as they happen",
		Long: `events prints a line for each container and pod that is created, started, stopped or deleted from now on. It ends with
the runtime, or after the number of events that --count says; with --follow it waits for the runtime to come back. With
-o json each event is a line, with the status of the pod and of its containers at that moment.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := cli.NoEmptyFlags(cmd); err != nil {
				return err
			}
			ctx := cmd.Context()
			rt, err := c.Runtime(ctx)
			if err != nil {
				return err
			}
			defer rt.Close()
			p := &eventPrinter{CLI: c, full: full, pod: pod, left: count, bounded: count > 0}
			for {
				err := p.read(ctx, rt)
				again := follow && (cli.ConnectionLost(err) || errors.Is(err, io.EOF) || status.Code(err) == codes.Unavailable)
				if !again || ctx.Err() != nil {
					return eventsEnd(err)
				}
				fmt.Fprintln(c.Err, "kuri: the runtime has ended; events between now and its return are not shown")
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(eventsRetry):
				}
			}
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on when the runtime is restarted")
	cmd.Flags().IntVarP(&count, "count", "n", 0, "end after this many events")
	cmd.Flags().BoolVar(&full, "no-trunc", false, "print ids in full")
	cmd.Flags().StringVarP(&pod, "pod", "p", "", "only of pods with this name, namespace/name, or beginning of an id")
	_ = cmd.RegisterFlagCompletionFunc("pod", c.CompletePods(cli.AnyNumber))
	c.FormatFlag(cmd)
	c.EndWithReader(cmd, func() bool { return true })
	return cmd
}

// eventsRetry is the interval at which --follow tries to reach a runtime that has exited.
const eventsRetry = time.Second

// eventsEnd returns the meaning of the end of a stream of events.
func eventsEnd(err error) error {
	switch {
	case errors.Is(err, errEnough):
		return nil
	case errors.Is(err, io.EOF):
		return errors.New("the runtime has ended the stream of events; one that tells no events does so at once (in CRI-O set enable_pod_events)")
	case status.Code(err) == codes.Unimplemented:
		return fmt.Errorf("this runtime tells no events: %w", err)
	}
	return err
}

// errEnough ends the reading after --count events.
var errEnough = errors.New("that were enough events")

// eventPrinter prints events.
type eventPrinter struct {
	*cli.CLI
	full    bool
	pod     string // events of other pods are skipped
	left    int    // number of events to print, if bounded
	bounded bool
}

// read prints events until the stream ends, and returns the reason.
func (p *eventPrinter) read(ctx context.Context, rt *client.Runtime) error {
	stream, err := rt.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return err
	}
	for {
		e, err := stream.Recv()
		if err != nil {
			return err
		}
		if !p.wants(e.GetPodSandboxStatus()) {
			continue
		}
		if err := p.event(e); err != nil {
			return err
		}
		if p.left--; p.bounded && p.left == 0 {
			return errEnough
		}
	}
}

// wants reports whether events of a pod are to be printed.
func (p *eventPrinter) wants(s *runtimeapi.PodSandboxStatus) bool {
	m := s.GetMetadata()
	id, isID := cli.IDText(p.pod)
	return p.pod == "" || p.pod == m.GetName() || p.pod == m.GetNamespace()+"/"+m.GetName() ||
		isID && strings.HasPrefix(s.GetId(), id)
}

func (p *eventPrinter) event(e *runtimeapi.ContainerEventResponse) error {
	switch p.Format {
	case cli.FormatJSON:
		raw, err := cli.Marshal(e)
		if err != nil {
			return err
		}
		var line bytes.Buffer
		if err := json.Compact(&line, raw); err != nil {
			return err
		}
		line.WriteByte('\n')
		_, err = p.Out.Write(line.Bytes())
		return err
	case cli.FormatYAML:
		if _, err := fmt.Fprintln(p.Out, "---"); err != nil {
			return err
		}
		return p.PrintData(e)
	}
	s := e.GetPodSandboxStatus()
	what := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(e.GetContainerEventType().String(), "CONTAINER_"),
		"_EVENT"))
	line := fmt.Sprintf("%s  %-7s  %-9s  %s  %s%s",
		time.Unix(0, e.GetCreatedAt()).Format("2006-01-02T15:04:05.000000Z07:00"), what,
		kindOf(e), cli.TrimID(e.GetContainerId(), p.full),
		cmp.Or(cli.PodName(&runtimeapi.PodSandbox{Metadata: s.GetMetadata()}), "-"), containerOf(e))
	_, err := fmt.Fprintln(p.Out, cli.Printable(line))
	return err
}

func kindOf(e *runtimeapi.ContainerEventResponse) string {
	if e.GetContainerId() == e.GetPodSandboxStatus().GetId() {
		return "pod"
	}
	return "container"
}

// containerOf returns the container's name and how it exited, or "" if the event does not have it.
func containerOf(e *runtimeapi.ContainerEventResponse) string {
	for _, st := range e.GetContainersStatuses() {
		if st.GetId() != e.GetContainerId() {
			continue
		}
		text := "/" + st.GetMetadata().GetName()
		if st.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			text += fmt.Sprintf("  exit code %d", st.GetExitCode())
			if st.GetReason() != "" {
				text += ", " + st.GetReason()
			}
		}
		return text
	}
	return ""
}
