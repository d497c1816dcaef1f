package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func DaemonCommand(c *cli.CLI) *cobra.Command {
	cmd := cli.CommandGroup(&cobra.Command{
		Use:   "daemon",
		Short: "Debug Kuri's daemon: state, stacks and profiles",
		Long: `Print debugging data from kurid's debug socket, which only root can use. Nothing is changed, and the output contains no
environment variables and no credentials of pods.`,
	})
	cmd.AddCommand(DaemonVerbs(c)...)
	return cmd
}

// DaemonVerbs returns the verbs of kuri daemon, which earlier were verbs of kuri debug.
func DaemonVerbs(c *cli.CLI) []*cobra.Command {
	return []*cobra.Command{daemonStateCommand(c), daemonStacksCommand(c), daemonPprofCommand(c)}
}

func daemonStateCommand(c *cli.CLI) *cobra.Command {
	return &cobra.Command{
		Use:   "state",
		Short: "Print pods, containers and operations in flight, as JSON",
		Long: `state prints what kurid knows: the operations in flight with the step that each is at and since when, pods and containers with
their states and processes, the keeper and the holder, goroutines and memory.`,
		Example:           "  kuri daemon state\n  kuri daemon state | jq .operations",
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return askDaemonShortly(cmd.Context(), c, "/debug/state", c.Out)
		},
	}
}

func daemonStacksCommand(c *cli.CLI) *cobra.Command {
	var of string
	cmd := &cobra.Command{
		Use:               "stacks",
		Short:             "Print the stacks of the daemon's goroutines",
		Long:              `stacks prints the stack of each goroutine of kurid, or of a process that --of names. SIGUSR1 makes kurid write the same to its log, also when it does not answer.`,
		Example:           "  kuri daemon stacks\n  kuri daemon stacks --of keeper",
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			at, err := profilesOf(of)
			if err != nil {
				return err
			}
			return askDaemonShortly(cmd.Context(), c, at+"goroutine?debug=2", c.Out)
		},
	}
	ofFlag(c, cmd, &of)
	return cmd
}

// profiles has Go's profiles, and whether each is taken over a period.
var profiles = map[string]bool{
	"allocs": false, "block": false, "goroutine": false, "heap": false, "mutex": false, "threadcreate": false,
	"profile": true, "trace": true,
}

// profiled has the processes with profiles, and the paths of these on the debug socket.
var profiled = map[string]string{"kurid": "/debug/pprof/", "keeper": "/debug/keeper/pprof/",
	"streams": "/debug/streams/pprof/"}

func ofFlag(c *cli.CLI, cmd *cobra.Command, of *string) {
	cmd.Flags().StringVar(of, "of", "kurid",
		"the `process`: kurid, keeper, or streams, which serves exec, attach and port-forward")
	_ = cmd.RegisterFlagCompletionFunc("of", cobra.FixedCompletions([]string{"kurid", "keeper", "streams"},
		cobra.ShellCompDirectiveNoFileComp))
}

// profilesOf returns the path of a process's profiles.
func profilesOf(process string) (string, error) {
	at, ok := profiled[process]
	if !ok {
		return "", fmt.Errorf("--of: there is no process %q; there are kurid, keeper and streams", process)
	}
	return at, nil
}

func daemonPprofCommand(c *cli.CLI) *cobra.Command {
	var to, of string
	var seconds int
	names := make([]string, 0, len(profiles))
	for name := range profiles {
		names = append(names, name)
	}
	slices.Sort(names)
	cmd := &cobra.Command{
		Use:   "pprof PROFILE",
		Short: "Take a profile of the daemon",
		Long: `pprof writes a profile of kurid for go tool pprof: ` + strings.Join(names, ", ") + `. "profile" is that of
the CPU; it and "trace", which is for go tool trace, are taken over --seconds.

--of names another process: the keeper, or the one that streams, while there is one. These have no "block", "mutex" and "trace". The
keeper has profiles if it was built with them (make kuri-keeper LEAN=): else they would take memory on every node. It samples its
memory only while it is asked for: its "heap" and "allocs" are those of --seconds.`,
		Example: "  kuri daemon pprof heap -o heap.pprof\n  kuri daemon pprof profile --seconds 30 -o cpu.pprof\n  kuri daemon pprof profile --of keeper -o keeper.pprof",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("one profile is needed: %s", strings.Join(names, ", "))
			}
			return nil
		},
		ValidArgs: names,
		RunE: func(cmd *cobra.Command, args []string) error {
			timed, known := profiles[args[0]]
			switch {
			case !known:
				return fmt.Errorf("there is no profile %q; there are %s", args[0], strings.Join(names, ", "))
			case seconds < 1 || seconds > 600:
				return fmt.Errorf("--seconds: %d is not from 1 to 600", seconds)
			}
			at, err := profilesOf(of)
			if err != nil {
				return err
			}
			path := at + args[0]
			ctx := cmd.Context()
			if timed || of == "keeper" && (args[0] == "heap" || args[0] == "allocs") {
				path += "?" + url.Values{"seconds": {fmt.Sprint(seconds)}}.Encode()
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second+30*time.Second)
				defer cancel()
				return profileTo(c, to, func(out io.Writer) error { return askDaemon(ctx, c, path, out) })
			}
			return profileTo(c, to, func(out io.Writer) error { return askDaemonShortly(ctx, c, path, out) })
		},
	}
	cmd.Flags().StringVarP(&to, "output", "o", "", "`file` to write to, instead of standard output")
	cmd.Flags().IntVar(&seconds, "seconds", 10, "how long a CPU profile, a trace or the keeper's memory is taken")
	ofFlag(c, cmd, &of)
	return cmd
}

// profileTo has write fill the file, which it removes on failure, or standard output, which must
// not be a terminal.
func profileTo(c *cli.CLI, file string, write func(io.Writer) error) error {
	if file == "" {
		if f, ok := c.Out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return errors.New("a profile is binary and not written to a terminal: use -o FILE, or redirect the output")
		}
		return write(c.Out)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		os.Remove(file)
		return err
	}
	return nil
}

// askDaemonShortly is askDaemon with the timeout of a call.
func askDaemonShortly(ctx context.Context, c *cli.CLI, path string, out io.Writer) error {
	s, err := c.Settings()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	return askDaemon(ctx, c, path, out)
}
