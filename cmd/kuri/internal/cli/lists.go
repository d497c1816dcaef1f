package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// ListOptions are the common flags of the lists.
type ListOptions struct {
	quiet, Full, watch bool
	Name, Sort         string

	Pattern *regexp.Regexp // of name
}

// ListFlags adds the flags of a list to cmd. orders are the values of --sort; the first is the default.
func (o *ListOptions) ListFlags(cmd *cobra.Command, orders ...string) {
	f := cmd.Flags()
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print ids only, in full")
	f.BoolVar(&o.Full, "no-trunc", false, "print ids in full")
	f.BoolVarP(&o.watch, "watch", "w", false, "go on, and print what changes, until interrupted")
	f.StringVar(&o.Name, "name", "", "only those whose name has a match of this `REGEXP`")
	f.StringVar(&o.Sort, "sort", orders[0], "`ORDER`: "+strings.Join(orders, ", "))
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(orders, cobra.ShellCompDirectiveNoFileComp))
	format := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if !slices.Contains(orders, o.Sort) {
			return Usagef("--sort %q: expected %s", o.Sort, strings.Join(orders, ", "))
		}
		err := NoEmptyFlags(cmd)
		if err != nil {
			return err
		}
		if o.Pattern, err = regexp.Compile(o.Name); err != nil {
			return Usagef("--name %q: not a regular expression: %s", o.Name,
				strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		}
		return format(cmd, args)
	}
}

// StateFlag adds the flag --state to a list, with states as its values.
func StateFlag(cmd *cobra.Command, state *string, states ...string) {
	cmd.Flags().StringVarP(state, "state", "s", "", "only those in this `STATE`: "+strings.Join(states, ", "))
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(states, cobra.ShellCompDirectiveNoFileComp))
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		*state = strings.ToLower(strings.ReplaceAll(*state, "_", ""))
		if *state != "" && !slices.Contains(states, *state) {
			return Usagef("--state %q: expected %s", *state, strings.Join(states, ", "))
		}
		return before(cmd, args)
	}
}

// Listing is a list at one moment: the ids, the value for -o, and the rows of the table.
type Listing struct {
	IDs  []string
	Data any
	Rows func() ([][]string, error)
}

// Show prints a list in the requested format, once or, with --watch, whenever it changes.
func (c *CLI) Show(ctx context.Context, o *ListOptions, list func(context.Context) (*Listing, error)) error {
	if o.watch {
		return c.WhileRead(ctx, func(ctx context.Context) error { return c.watch(ctx, o, list) })
	}
	l, err := list(ctx)
	if err != nil {
		return err
	}
	if o.quiet {
		for _, id := range l.IDs {
			if _, err := fmt.Fprintln(c.Out, id); err != nil {
				return err
			}
		}
		return nil
	}
	return c.Print(l.Data, func() error {
		rows, err := l.Rows()
		if err != nil {
			return err
		}
		return Table(c.Out, rows)
	})
}

// watchEvery is the interval at which a list is read.
const watchEvery = time.Second

// watch prints a table and then each row that changes other than in its age. For an object that
// goes away it prints a last row.
func (c *CLI) watch(ctx context.Context, o *ListOptions, list func(context.Context) (*Listing, error)) error {
	if !c.Tabular() || o.quiet {
		return Usagef("--watch is for tables")
	}
	shown := map[string]string{} // rows, by their first cells
	var widths []int
	var lastRows [][]string
	for first := true; ; first = false {
		rows, err := rowsOf(ctx, list)
		if ConnectionLost(err) && !first && ctx.Err() == nil { // the runtime may come back
			rows, err = lastRows, nil
		}
		if err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		lastRows = rows
		if widths = widen(widths, rows); first {
			writeRow(c.Out, rows[0], widths)
		}
		age := slices.Index(rows[0], "AGE")
		seen := map[string]bool{}
		for _, row := range rows[1:] {
			key := strings.Join(row[:2], " ") // an id, or a name and an id
			seen[key] = true
			plain := slices.Clone(row)
			if age >= 0 {
				plain[age] = ""
			}
			if text := strings.Join(plain, "\t"); shown[key] != text {
				shown[key] = text
				writeRow(c.Out, row, widths)
			}
		}
		for key := range shown {
			if !seen[key] {
				delete(shown, key)
				fmt.Fprintln(c.Out, Printable(key), "is gone")
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(watchEvery):
		}
	}
}

func rowsOf(ctx context.Context, list func(context.Context) (*Listing, error)) ([][]string, error) {
	l, err := list(ctx)
	if err != nil {
		return nil, err
	}
	return l.Rows()
}

// widen returns widths, increased to fit rows.
func widen(widths []int, rows [][]string) []int {
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	return widths
}

func writeRow(w io.Writer, row []string, widths []int) {
	var b strings.Builder
	for i, cell := range row {
		if cell = Printable(cell); cell == "" {
			cell = "-"
		}
		b.WriteString(cell)
		if i < len(row)-1 {
			b.WriteString(strings.Repeat(" ", widths[i]-len([]rune(cell))+3))
		}
	}
	fmt.Fprintln(w, b.String())
}

// HasLabels reports whether labels contains all of want.
func HasLabels(labels, want map[string]string) bool {
	for k, v := range want {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// The values of --sort.
const (
	ByAge       = "age"
	ByName      = "name"
	ByNamespace = "namespace"
	ByState     = "state"
	ByPod       = "pod"
	ByImage     = "image"
	BySize      = "size"
)
