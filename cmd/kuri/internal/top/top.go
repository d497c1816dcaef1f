package top

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// Bounds of the interval between samples.
const (
	defaultDelay = 3 * time.Second
	leastDelay   = 100 * time.Millisecond
	mostDelay    = time.Hour
	firstDelay   = time.Second // after the first sample: rates need two
)

// topOptions are the flags of kuri top.
type topOptions struct {
	batch, containers bool
	count             int // number of samples; 0: no end
	delay             time.Duration
	order, filter     string
}

func Command(c *cli.CLI) *cobra.Command {
	var o topOptions
	var names []string
	for _, order := range topOrders {
		names = append(names, order.name)
	}
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the resource usage of pods and containers",
		Long: `Show what pods and containers use, again and again. Keys are those of top and k9s: P, M, T, D, W and N sort by cpu, memory,
network, disk, pressure and name, R the other way round; Tab changes between pods and containers, Enter shows the containers
of a pod; / filters; d changes the delay; h has them all; q quits.

Without a terminal, use -b: a table for each sample. It works with any runtime; a dash stands for a value that the runtime does not report.`,
		Example: `  kuri top
  kuri top -c --sort memory       containers, the largest first
  kuri top -b -n 3 -d 5s          three tables, five seconds apart
  kuri top -o json                one sample, for programs`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case !slices.Contains(names, o.order):
				return cli.Usagef("--sort %q: expected %s", o.order, strings.Join(names, ", "))
			case o.delay < leastDelay || o.delay > mostDelay:
				return cli.Usagef("--delay %s: expected %s to %s", o.delay, leastDelay, mostDelay)
			case o.count < 0:
				return cli.Usagef("--count %d: expected a number of samples, 0 for no end", o.count)
			}
			if !c.Tabular() {
				if o.batch = true; !cmd.Flags().Changed("count") {
					o.count = 1
				}
			}
			return top(cmd.Context(), c, o)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.batch, "batch", "b", false, "print a table for each sample, without a terminal")
	f.IntVarP(&o.count, "count", "n", 0, "end after `N` samples")
	f.DurationVarP(&o.delay, "delay", "d", defaultDelay, "`TIME` between samples")
	f.BoolVarP(&o.containers, "containers", "c", false, "begin with containers instead of pods")
	f.StringVar(&o.order, "sort", "cpu", "`ORDER`: "+strings.Join(names, ", "))
	f.StringVar(&o.filter, "filter", "", "only rows with `TEXT` in a name, a state or an id")
	c.FormatFlag(cmd)
	return cmd
}

func top(ctx context.Context, c *cli.CLI, o topOptions) error {
	rt, err := c.Runtime(ctx)
	if err != nil {
		return err
	}
	defer rt.Close()
	view := &topView{containers: o.containers, filter: o.filter, delay: o.delay,
		order: slices.IndexFunc(topOrders, func(t topOrder) bool { return t.name == o.order })}
	if v, err := rt.Version(ctx, &runtimeapi.VersionRequest{}); err == nil {
		view.runtime = v.RuntimeName + " " + v.RuntimeVersion
	}
	if o.batch {
		return topBatch(ctx, c, rt, view, o.count)
	}
	in, inOK := c.In.(*os.File)
	out, outOK := c.Out.(*os.File)
	if !inOK || !outOK || !term.IsTerminal(int(in.Fd())) || !term.IsTerminal(int(out.Fd())) {
		return cli.Usagef("kuri top needs a terminal for its input and output; -b prints tables without one")
	}
	s, err := openScreen(in, out)
	defer s.close() // even after a panic
	if err != nil {
		return err
	}
	t := &topLoop{topView: view, screen: s, rt: rt, left: o.count, colors: c.Env("NO_COLOR") == ""}
	return t.run(ctx)
}

// topBatch prints count samples, or samples forever if count is 0.
func topBatch(ctx context.Context, c *cli.CLI, rt *client.Runtime, view *topView, count int) error {
	s := newSampler(rt)
	if _, err := s.sample(ctx); err != nil { // rates need two
		return err
	}
	wait := min(view.delay, firstDelay)
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		var err error
		if view.now, err = s.sample(ctx); err != nil {
			return err
		}
		if err := c.Print(view.now, func() error { return printTop(c, view) }); err != nil {
			return err
		}
		if n == count {
			return nil
		}
		wait = view.delay
		if c.Tabular() {
			fmt.Fprintln(c.Out)
		}
	}
}

// batchWidth is the width of the tables of -b unless the output is a terminal.
const batchWidth = 150

func printTop(c *cli.CLI, view *topView) error {
	width := batchWidth
	if file, ok := c.Out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		width = c.Columns()
	}
	var out strings.Builder
	lines := view.lines(width, math.MaxInt)
	for _, l := range lines[:2] {
		fmt.Fprintln(&out, strings.TrimRight(l.text, " "))
	}
	for _, l := range lines[3:] { // without the line for keys
		fmt.Fprintln(&out, strings.TrimRight(l.text, " "))
	}
	_, err := c.Out.Write([]byte(out.String()))
	return err
}

// topLoop is kuri top on a terminal. One goroutine owns the view. Others read keys and call the
// runtime; they exit with it.
type topLoop struct {
	*topView
	screen *screen
	rt     *client.Runtime
	left   int // number of samples; 0: no end
	colors bool
}

// sampleResult is a sample or the error of taking it.
type sampleResult struct {
	now *sampling
	err error
}

// panicError ends the loop after a panic in another goroutine, so that the terminal is restored first.
type panicError struct{ text string }

func (e panicError) Error() string { return e.text }

// run shows the view until a key, a signal or the last sample ends it.
func (t *topLoop) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	wanted, samples := make(chan struct{}, 1), make(chan sampleResult, 1)
	input := make(chan []byte)
	guarded(cancel, func() { t.sampleWhenWanted(ctx, wanted, samples) })
	guarded(cancel, func() { readInput(ctx, t.screen.in, input) })
	changed, ended := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	signal.Notify(ended, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(changed)
	defer signal.Stop(ended)

	asked := time.Time{} // start of the pending request for a sample; zero if there is none
	ask := func() {
		if asked.IsZero() {
			asked = time.Now()
			wanted <- struct{}{}
		}
	}
	ask()
	next := time.NewTimer(firstDelay)
	defer next.Stop()
	look := time.NewTicker(time.Second) // checks whether the runtime still answers
	defer look.Stop()
	escape := time.NewTimer(time.Hour) // after it the beginning of a sequence counts as a key
	defer escape.Stop()
	first := true
	var pending []byte
	for {
		if err := t.draw(); err != nil {
			return err
		}
		var keys []rune
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case s := <-ended:
			return cli.ExitCode(cli.ExitSignal + int(s.(syscall.Signal)))
		case <-changed:
		case <-next.C:
			ask()
		case <-look.C:
			if !asked.IsZero() && time.Since(asked) > t.delay+2*time.Second {
				t.trouble = fmt.Sprintf("the runtime has not answered for %s", cli.ShortDuration(time.Since(asked)))
			}
		case got := <-samples:
			asked = time.Time{}
			if t.take(got) {
				return nil
			}
			wait := t.delay
			if first && got.err == nil {
				first, wait = false, min(wait, firstDelay)
			}
			next.Reset(wait)
		case more, open := <-input:
			if !open { // the terminal is gone
				return nil
			}
			keys, pending = readKeys(append(pending, more...), false)
			if len(pending) > 0 {
				escape.Reset(escapeWait)
			}
		case <-escape.C:
			keys, pending = readKeys(pending, true)
		}
		if done, err := t.pressAll(keys, ask); done || err != nil {
			return err
		}
	}
}

// pressAll handles keys, and calls ask for each that wants a new sample. It reports whether one of
// them ends the view.
func (t *topLoop) pressAll(keys []rune, ask func()) (done bool, err error) {
	for _, key := range keys {
		switch t.press(key) {
		case quit:
			return true, nil
		case sampleNow:
			ask()
		case suspend:
			if err := t.screen.suspend(); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// escapeWait is the time in which the rest of a key's sequence may arrive after an escape, even
// over a slow line.
const escapeWait = 50 * time.Millisecond

// take takes a sample, and reports whether it was the last one.
func (t *topLoop) take(s sampleResult) (last bool) {
	if s.err != nil {
		t.trouble = strings.ReplaceAll(cli.Describe(s.err), "\n", "; ")
		return false
	}
	t.now, t.trouble = s.now, ""
	if t.left > 0 {
		t.left--
		return t.left == 0
	}
	return false
}

func (t *topLoop) draw() error {
	width, height := t.screen.size()
	return t.screen.draw(t.lines(width, height), width, height, t.colors)
}

// sampleWhenWanted takes a sample for each request on wanted. After an error it tries again on the next request; gRPC
// reconnects by itself.
func (t *topLoop) sampleWhenWanted(ctx context.Context, wanted <-chan struct{}, to chan<- sampleResult) {
	s := newSampler(t.rt)
	for {
		select {
		case <-ctx.Done():
			return
		case <-wanted:
		}
		now, err := s.sample(ctx)
		select {
		case to <- sampleResult{now, err}:
		case <-ctx.Done():
			return
		}
	}
}

// readInput sends the terminal's input to to, and closes that at the end. The end of ctx does not
// interrupt a pending read; it ends with the program.
func readInput(ctx context.Context, in *os.File, to chan<- []byte) {
	defer close(to)
	for {
		buf := make([]byte, 256)
		n, err := in.Read(buf)
		if n > 0 {
			select {
			case to <- buf[:n]:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// guarded runs fn in a goroutine. A panic in it cancels the context, so that the terminal is
// restored before the program ends.
func guarded(cancel context.CancelCauseFunc, fn func()) {
	go func() {
		defer func() {
			if r := recover(); r != nil {
				cancel(panicError{fmt.Sprintf("panic: %v\n%s", r, debug.Stack())})
			}
		}()
		fn()
	}()
}
