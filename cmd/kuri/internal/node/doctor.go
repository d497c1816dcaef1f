package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// The exit codes of kuri doctor, beside 0 for no damage found, or none left.
const (
	exitFound = cli.ExitCode(1)
	exitBlind = 2 // it could not look, or not everywhere
)

func DoctorCommand(c *cli.CLI) *cobra.Command {
	var fix bool
	var config string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find leftovers without an owner and broken state on this node",
		Long: `doctor compares what the node has with what the runtime knows: network namespaces, links, addresses, nftables rules, mounts,
cgroups, processes, layers, writable layers, records, sockets, locks, and the files of kuri run. It tells what nobody owns
and what is owned and broken, each with what to do. --fix mends what is certainly Kuri's own and not in use. It ends no
process, and touches nothing that runs and nothing of another runtime.

It works while the daemon is stopped, too: then it says so, and looks at what can be seen without it.

Exit codes: 0 nothing was found, or all of it was mended; 1 something was found, or is left; 2 it could not look, or not
everywhere. This needs Kuri's own runtime.`,
		Example: `  kuri doctor                  tell what is wrong
  kuri doctor --fix            and mend what can be mended
  kuri doctor -o json | jq -r '.damages[].subject'`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			report, err := examine(cmd.Context(), c, fix, config)
			if err != nil {
				return cli.WithCode(err, exitBlind)
			}
			return tellDamages(c, report)
		},
	}
	c.FormatFlag(cmd)
	cmd.Flags().BoolVar(&fix, "fix", false, "mend what is certainly Kuri's own and not in use")
	cmd.Flags().StringVar(&config, "kurid-config", "",
		"`FILE` with the daemon's configuration, for while it is stopped (default: the daemon's own)")
	return cmd
}

// examine calls the daemon, or examines the node without it if it does not answer.
func examine(ctx context.Context, c *cli.CLI, fix bool, config string) (*kuriv1.ExamineResponse, error) {
	rt, err := c.Runtime(ctx)
	var unreachable *client.UnreachableError
	if errors.As(err, &unreachable) && !errors.Is(err, os.ErrPermission) {
		fmt.Fprintln(c.Err, "kuri: kurid does not run, looking at what can be seen without it")
		return examineStopped(ctx, fix, config)
	}
	if err != nil {
		return nil, err
	}
	defer rt.Close()
	report, err := rt.Doctor.Examine(ctx, &kuriv1.ExamineRequest{Fix: fix})
	if status.Code(err) == codes.Unimplemented {
		return nil, fmt.Errorf("%s is not Kuri's runtime, or is an older one: kuri doctor knows nothing of it", rt.Endpoint())
	}
	return report, err
}

// examineStopped runs kurid's own examination. kurid must be beside this program or in PATH.
func examineStopped(ctx context.Context, fix bool, config string) (*kuriv1.ExamineResponse, error) {
	args := []string{"doctor"}
	if fix {
		args = append(args, "--fix")
	}
	var out, errs bytes.Buffer
	cmd, err := kuridCommand(ctx, config, args...)
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("look without the daemon: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	report := &kuriv1.ExamineResponse{}
	if err := protojson.Unmarshal(out.Bytes(), report); err != nil {
		return nil, fmt.Errorf("look without the daemon: %s is another version of Kuri: %w", cmd.Path, err)
	}
	return report, nil
}

// kuridCommand returns a command of kurid, beside this program or in PATH, with its default
// configuration or the given one.
func kuridCommand(ctx context.Context, config string, args ...string) (*exec.Cmd, error) {
	program := "kurid"
	if self, err := os.Executable(); err == nil {
		if beside := filepath.Join(filepath.Dir(self), program); isFile(beside) {
			program = beside
		}
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("kurid does not run, and its program is not beside this one and not in PATH: %w", err)
	}
	if config != "" {
		args = append(args, "--config", config)
	}
	return exec.CommandContext(ctx, path, args...), nil
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// tellDamages prints the report and returns the exit code as an error.
func tellDamages(c *cli.CLI, r *kuriv1.ExamineResponse) error {
	if err := c.Print(r, func() error { return damageText(c, r) }); err != nil {
		return err
	}
	left := 0
	for _, d := range r.Damages {
		if !d.Fixed {
			left++
		}
	}
	switch {
	case len(r.Blind) > 0:
		return cli.ExitCode(exitBlind)
	case left > 0:
		return exitFound
	}
	return nil
}

func damageText(c *cli.CLI, r *kuriv1.ExamineResponse) error {
	for _, d := range r.Damages {
		fmt.Fprintf(c.Out, "%s: %s\n  %s\n", d.Check, cli.Printable(d.Subject), cli.Printable(d.Problem))
		switch {
		case d.Fixed:
			fmt.Fprintln(c.Out, "  mended")
		case d.FixError != "":
			fmt.Fprintf(c.Out, "  not mended: %s\n", cli.Printable(d.FixError))
		default:
			fmt.Fprintf(c.Out, "  what to do: %s\n", cli.Printable(d.Advice))
		}
	}
	for _, b := range r.Blind {
		fmt.Fprintf(c.Err, "kuri: could not look at %s: %s\n", b.Check, cli.Printable(b.Error))
	}
	if len(r.Damages)+len(r.Blind) == 0 {
		fmt.Fprintln(c.Out, "nothing is wrong with this node")
	}
	return nil
}
