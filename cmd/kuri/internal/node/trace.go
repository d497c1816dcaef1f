package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func TraceCommand(c *cli.CLI) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trace NAME",
		Short: "Show the time of each step of a pod's or a container's start",
		Long: `Show the requests that have started a pod, or one container, as bars on one time line: the sandbox, the pulls of its images,
and its containers, each with its steps, and the keeper's own below the step that waits for it. What is between two requests is the client's time, a kubelet's for example. The
way in which a container's first process was made is named, with the reason where it was the longer one.

kurid keeps the newest thousand requests, in memory: what it started before its own last start is gone. This needs Kuri's
own runtime.`,
		Example: `  kuri trace web
  kuri trace web/server -o json`,
		Args:              cli.RangeArgs(1, 1),
		ValidArgsFunction: c.CompleteNames(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := showTrace(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			return c.Print(t, func() error {
				_, err := c.Out.Write([]byte(t.text(c.Columns())))
				return err
			})
		},
	}
	c.FormatFlag(cmd)
	return cmd
}

// trace is the record of the requests that started a pod or a container.
type trace struct {
	Name       string           `json:"name"`
	Began      int64            `json:"began"` // nanoseconds since the epoch, as all times
	Took       int64            `json:"took"`  // nanoseconds, from the start of the first request to the end of the last
	Operations []traceOperation `json:"operations"`
}

// traceOperation is one request as kurid reports it.
type traceOperation struct {
	Kind        string      `json:"kind"`
	Container   string      `json:"container,omitempty"`
	ContainerID string      `json:"containerID,omitempty"`
	Image       string      `json:"image,omitempty"`
	Began       int64       `json:"began"`
	Took        int64       `json:"took"`
	Steps       []traceStep `json:"steps"`
	Error       string      `json:"error,omitempty"`
	Caller      string      `json:"caller,omitempty"`
	Init        string      `json:"init,omitempty"` // of CreateContainer: the program that created the first process
}

type traceStep struct {
	Name  string      `json:"name"`
	After int64       `json:"after"`
	Took  int64       `json:"took"`
	Parts []traceStep `json:"parts,omitempty"` // the keeper's own steps; their After counts from the same start
}

// showTrace gets the trace of the named pod or container.
func showTrace(ctx context.Context, c *cli.CLI, name string) (*trace, error) {
	rt, err := c.Runtime(ctx)
	if err != nil {
		return nil, err
	}
	defer rt.Close()
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return nil, err
	}
	pod, ct, err := have.PodOrContainer(name)
	if err != nil {
		return nil, err
	}
	var told map[string]string
	var containers []*runtimeapi.Container
	t := &trace{}
	if pod != nil {
		t.Name, containers = cli.PodKey(pod), have.ContainersIn(pod, have.Containers)
		st, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.Id, Verbose: true})
		if err != nil {
			return nil, fmt.Errorf("trace %s: %w", t.Name, err)
		}
		told = st.Info
	} else {
		t.Name, containers = have.ContainerText(ct), []*runtimeapi.Container{ct}
		st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id, Verbose: true})
		if err != nil {
			return nil, fmt.Errorf("trace %s: %w", t.Name, err)
		}
		told = st.Info
	}
	raw, ok := told["operations"]
	if !ok {
		return nil, errors.New("this runtime does not tell how its pods were started: only kurid does")
	}
	if err := json.Unmarshal([]byte(raw), &t.Operations); err != nil {
		return nil, fmt.Errorf("trace %s: %w", t.Name, err)
	}
	if len(t.Operations) == 0 {
		return nil, cli.NotFound("nothing is known of the start of %s: kurid keeps the newest thousand requests since its own start", t.Name)
	}
	t.Began = t.Operations[0].Began
	for _, o := range t.Operations {
		t.Took = max(t.Took, o.Began+o.Took-t.Began)
	}
	return t, t.askInit(ctx, rt, containers)
}

// askInit finds out which program created the containers' first processes.
func (t *trace) askInit(ctx context.Context, rt *client.Runtime, containers []*runtimeapi.Container) error {
	for _, ct := range containers {
		at := slices.IndexFunc(t.Operations,
			func(o traceOperation) bool { return o.Kind == "CreateContainer" && o.ContainerID == ct.Id })
		if at < 0 {
			continue
		}
		st, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: ct.Id, Verbose: true})
		if cli.IsGone(err) {
			continue
		}
		if err != nil {
			return err
		}
		var info struct{ Init string }
		if json.Unmarshal([]byte(st.Info["info"]), &info) == nil {
			t.Operations[at].Init = info.Init
		}
	}
	return nil
}

// The columns of a trace: the name of a request or a step, its time, and a bar in the rest of the line.
const (
	traceName = 30
	traceTime = 9
	leastBar  = 20
)

// text draws the trace in lines of the given width.
func (t *trace) text(width int) string {
	bars := max(leastBar, width-traceName-traceTime-3)
	var out strings.Builder
	fmt.Fprintf(&out, "%s: %s, at %s\n\n", cli.Printable(t.Name), took(t.Took),
		time.Unix(0, t.Began).Format("2006-01-02 15:04:05.000"))
	line := func(name string, began, length int64, fill string) {
		fmt.Fprintln(&out, strings.TrimRight(fmt.Sprintf("%s %*s  %s", cli.Pad(cli.Cut(cli.Printable(name), traceName),
			traceName), traceTime, took(length), t.bar(began, length, bars, fill)), " "))
	}
	end := t.Began
	for _, o := range t.Operations {
		if o.Began-end > t.Took/200 {
			line("(client)", end, o.Began-end, "·")
		}
		end = max(end, o.Began+o.Took)
		name := o.Kind
		switch {
		case o.Container != "":
			name += " " + o.Container
		case o.Image != "":
			name += " " + o.Image
		}
		line(name, o.Began, o.Took, "█")
		for _, s := range o.Steps {
			line("  "+s.Name, o.Began+s.After, s.Took, "▒")
			for _, p := range s.Parts {
				line("    "+p.Name, o.Began+p.After, p.Took, "░")
			}
		}
		if o.Init != "" {
			fmt.Fprintf(&out, "  first process by %s\n", cli.Printable(initText(o.Init)))
		}
		if o.Error != "" {
			fmt.Fprintf(&out, "  FAILED: %s\n", cli.Printable(o.Error))
		}
	}
	return out.String()
}

func initText(init string) string {
	if why, ok := strings.CutPrefix(init, "libcontainer: "); ok {
		return "libcontainer, the longer way: " + why
	}
	return "Kuri's own init"
}

// bar draws a period on the time axis, at least one character wide.
func (t *trace) bar(began, length int64, width int, fill string) string {
	if t.Took <= 0 {
		return fill
	}
	from := int(float64(began-t.Began) / float64(t.Took) * float64(width))
	from = min(max(from, 0), width-1)
	n := int(float64(length)/float64(t.Took)*float64(width) + 0.5)
	n = min(max(n, 1), width-from)
	return strings.Repeat(" ", from) + strings.Repeat(fill, n)
}

// took formats nanoseconds with three digits.
func took(nanos int64) string {
	switch d := time.Duration(nanos); {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.2f s", d.Seconds())
	default:
		return d.Round(time.Second).String()
	}
}
