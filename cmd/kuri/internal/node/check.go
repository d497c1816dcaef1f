package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/image"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/login"
	"github.com/kuri-cri/kuri/probe"
)

// The exit codes of kuri check for a node.
const (
	exitLimited = 1
	exitMissing = 2
)

func CheckCommand(c *cli.CLI) *cobra.Command {
	var images, repair, problems bool
	var root, state string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the features that this node needs for containers, and show how to fix them",
		Long: `Try what a node needs: the kernel, storage, cgroups, security, network, limits, clock, kubelet and other runtimes. Each line is ok,
limited (the node works, and something on it would fail), missing (the node is of no use without it) or unknown (it could not be tried),
with what would fail and how to mend it.

It works before anything is installed, without a runtime, and mostly without root. Where a runtime answers, it is asked too: for its
conditions, and Kuri's own for its directories and its network. What is tried leaves nothing behind.

The exit code is 0 when all is ok, 1 when something is limited, and 2 when something is missing.

With --images it verifies what is stored of the images instead, as kuri image check does.`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case images && c.Format != cli.FormatTable:
				return cli.Usagef("--images has no other output: leave -o away")
			case images:
				return image.CheckImages(cmd.Context(), c, repair)
			case repair:
				return cli.Usagef("--repair goes with --images")
			}
			return checkNode(cmd.Context(), c, probe.Options{Root: root, State: state}, problems)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&images, "images", false, "check the images instead of the node")
	f.BoolVar(&repair, "repair", false, "with --images, fetch again what is damaged")
	f.BoolVarP(&problems, "quiet", "q", false, "only what is not ok")
	f.StringVar(&root, "root", "",
		"`DIR` that kurid is to have as its root (default: the running kurid's, else /var/lib/kuri)")
	f.StringVar(&state, "state", "",
		"`DIR` that kurid is to have for its state (default: the running kurid's, else /run/kuri)")
	login.AuthFileFlag(c, cmd)
	c.FormatFlag(cmd)
	cmd.AddCommand(insideCommand(c))
	return cmd
}

// insideCommand is the verb that kuri check runs in new namespaces.
func insideCommand(c *cli.CLI) *cobra.Command {
	return &cobra.Command{
		Use: "inside DIR", Hidden: true, Args: cli.RangeArgs(1, 1),
		Short: "Try what changes namespaces; kuri check starts it",
		RunE:  func(_ *cobra.Command, args []string) error { return probe.Inside(args[0], c.In, c.Out) },
	}
}

// checkNode checks this node. Unless all is ok it returns an exit code as its error.
func checkNode(ctx context.Context, c *cli.CLI, o probe.Options, problems bool) error {
	told := runtimeOptions(ctx, c, &o)
	if self, err := os.Executable(); err == nil {
		o.Child = []string{self, "check", "inside"}
	}
	results := append(probe.Run(ctx, o), told...)
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	shown := results
	if problems {
		shown = nil
		for _, r := range results {
			if r.State != probe.OK {
				shown = append(shown, r)
			}
		}
	}
	err := c.Print(map[string]any{"checks": anys(shown), "summary": countStates(results)},
		func() error { return checkTable(c, shown, results) })
	if err != nil {
		return err
	}
	switch n := countStates(results); {
	case n[probe.Missing] > 0:
		return cli.ExitCode(exitMissing)
	case n[probe.Limited] > 0:
		return cli.ExitCode(exitLimited)
	}
	return nil
}

func countStates(results []probe.Result) map[probe.State]int {
	n := map[probe.State]int{probe.OK: 0, probe.Limited: 0, probe.Missing: 0, probe.Unknown: 0}
	for _, r := range results {
		n[r.State]++
	}
	return n
}

// checkTable prints results in their groups, and the number of each state.
func checkTable(c *cli.CLI, shown, all []probe.Result) error {
	width, group := 0, ""
	for _, r := range shown {
		width = max(width, len(r.Name))
	}
	var out strings.Builder
	for _, r := range shown {
		if r.Group != group {
			if group != "" {
				out.WriteByte('\n')
			}
			group = r.Group
			fmt.Fprintln(&out, group)
		}
		fmt.Fprintf(&out, "  %-8s %-*s  %s\n", r.State, width, r.Name, cli.Printable(r.Detail))
		for _, line := range [][2]string{{"fails", r.Fails}, {"mend", r.Mend}} {
			if line[1] != "" {
				fmt.Fprintf(&out, "  %*s%-6s %s\n", width+11, "", line[0]+":", cli.Printable(line[1]))
			}
		}
	}
	if len(shown) > 0 {
		out.WriteByte('\n')
	}
	n := countStates(all)
	fmt.Fprintf(&out, "%d ok, %d limited, %d missing", n[probe.OK], n[probe.Limited], n[probe.Missing])
	if n[probe.Unknown] > 0 {
		fmt.Fprintf(&out, ", %d unknown", n[probe.Unknown])
	}
	out.WriteByte('\n')
	_, err := c.Out.Write([]byte(out.String()))
	return err
}

// runtimeOptions fills in the runtime's directories, if a runtime answers, and returns its
// conditions as results. Values from flags are not changed.
func runtimeOptions(ctx context.Context, c *cli.CLI, o *probe.Options) []probe.Result {
	result := func(name string, state probe.State, detail, fails, mend string) probe.Result {
		return probe.Result{Group: "runtime", Name: name, State: state, Detail: detail, Fails: fails, Mend: mend}
	}
	if s, err := c.Settings(); err == nil {
		o.RuntimeSocket, _ = client.SocketPath(s.Runtime)
	}
	rt, err := c.Runtime(ctx)
	if err != nil {
		var unreachable *client.UnreachableError
		if errors.As(err, &unreachable) {
			return []probe.Result{result("socket", probe.Unknown, "no runtime answers: "+
				strings.ReplaceAll(cli.Describe(err), "\n", "; "), "", "")}
		}
		return []probe.Result{result("socket", probe.Missing, cli.Describe(err), "nothing can use this runtime",
			"see the runtime's log")}
	}
	defer rt.Close()
	st, err := rt.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return []probe.Result{result("status", probe.Missing, cli.Describe(err), "nothing can use this runtime",
			"see the runtime's log")}
	}
	var out []probe.Result
	version, err := rt.Version(ctx, &runtimeapi.VersionRequest{})
	if err == nil {
		out = append(out, result("version", probe.OK, version.GetRuntimeName()+" "+version.GetRuntimeVersion(), "", ""))
	}
	for _, cond := range st.GetStatus().GetConditions() {
		text := strings.TrimSpace(cond.Reason + " " + cond.Message)
		switch {
		// A condition of the runtime's own.
		case !cond.Status && cond.Type != runtimeapi.RuntimeReady && cond.Type != runtimeapi.NetworkReady:
			out = append(out, result(cond.Type, probe.Limited, text, "what the message says", "what the message says"))
		case !cond.Status:
			out = append(out, result(cond.Type, probe.Missing, text, "the node is not ready, and no pods are started",
				"what the message says, or see the runtime's log"))
		case cond.Message != "":
			out = append(out, result(cond.Type, probe.Limited, text, "what the message says", "what the message says"))
		default:
			out = append(out, result(cond.Type, probe.OK, "yes", "", ""))
		}
	}
	if config, err := rt.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{}); err == nil && config.Linux != nil {
		o.CgroupDriver = driver(config)
	}
	if version.GetRuntimeName() == "kuri" {
		kuridOptions(st.GetInfo()["config"], o)
		out = append(out, kuridUserNamespaces(st))
	}
	return out
}

// kuridOptions takes kurid's directories and network from its verbose status.
func kuridOptions(info string, o *probe.Options) {
	var told struct {
		StateDir, RootDir string
		Config            struct {
			Network struct {
				Use        string   `json:"use"`
				CNIConfDir string   `json:"cni_conf_dir"`
				CNIBinDirs []string `json:"cni_bin_dirs"`
			} `json:"network"`
		} `json:"config"`
	}
	if json.Unmarshal([]byte(info), &told) != nil {
		return
	}
	if o.Root == "" {
		o.Root = told.RootDir
	}
	if o.State == "" {
		o.State = told.StateDir
	}
	n := told.Config.Network
	o.CNIConfig, o.CNIPlugins, o.NeedCNI = n.CNIConfDir, n.CNIBinDirs, n.Use == "cni"
}

// kuridUserNamespaces returns kurid's findings on user namespaces, with its own directories and privileges.
func kuridUserNamespaces(st *runtimeapi.StatusResponse) probe.Result {
	r := probe.Result{Group: "runtime", Name: "user namespaces", State: probe.OK, Detail: "yes"}
	for _, h := range st.GetRuntimeHandlers() {
		if h.GetName() == "" && !h.GetFeatures().GetUserNamespaces() {
			r.State, r.Detail = probe.Limited, "kurid could not make one with mapped layers when it was started"
			r.Fails, r.Mend = "pods with hostUsers: false are refused",
				"the refusal of such a pod says why; mend that and restart kurid"
		}
	}
	return r
}
