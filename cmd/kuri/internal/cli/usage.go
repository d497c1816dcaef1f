package cli

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kuri-cri/kuri/spelling"
)

// Many is the maximum of RangeArgs for a command with any number of arguments.
const Many = math.MaxInt

// RangeArgs checks the number of a command's arguments.
func RangeArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least && len(args) == 0:
			return fmt.Errorf("missing arguments: %s", cmd.UseLine())
		case len(args) < least:
			return fmt.Errorf("missing argument after %q: %s", args[len(args)-1], cmd.UseLine())
		case len(args) > most:
			return fmt.Errorf("unexpected argument %q: %s", args[most], cmd.UseLine())
		}
		return nil
	}
}

// NoArgs checks that a command has no arguments.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%q takes no arguments, and there is %q", cmd.CommandPath(), args[0])
}

// CommandGroup makes cmd a group of commands, which by itself prints its help.
func CommandGroup(cmd *cobra.Command) *cobra.Command {
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return fmt.Errorf("there is no command %q%s", cmd.CommandPath()+" "+args[0], suggest(cmd.SuggestionsFor(args[0])))
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// helpCommand is kuri help. Unlike cobra's own it fails for an unknown command.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about a command",
		RunE: func(cmd *cobra.Command, args []string) error {
			of, rest, err := cmd.Root().Find(args)
			switch {
			case err != nil:
				return WrongUsage(err)
			case len(rest) > 0 && of.HasSubCommands():
				if err := of.Args(of, rest); err != nil {
					return WrongUsage(err)
				}
			}
			of.InitDefaultHelpFlag()
			return of.Help()
		},
	}
}

// elsewhere maps commands of crictl, docker and kubectl to their names here.
var elsewhere = map[string]string{
	"apply": "kuri run FILE", "up": "kuri run FILE", "play": "kuri run FILE", "compose": "kuri run FILE and kuri down FILE, for manifests of Kubernetes",
	"delete": "kuri rm, or kuri down FILE", "rmp": "kuri rm, which takes pods too", "remove": "kuri rm",
	"stopp": "kuri stop, which takes pods too", "kill": "kuri stop --grace 0", "restart": "kuri stop, kuri rm and kuri run FILE",
	"replace": "kuri down FILE and kuri run FILE", "edit": "kuri update for limits, else kuri down FILE and kuri run FILE",
	"statsp": "kuri stats, or kuri top", "metricsp": "kuri metrics", "checkpoint": "not supported", "pause": "not supported", "unpause": "not supported",
	"runtime-config": "kuri info", "config": "kuri info; the flags -r and -i, or /etc/crictl.yaml, say which runtime is asked",
	"wait": "kuri attach, which ends with the container and its exit code", "port": "kuri inspect", "rename": "kuri run --name",
	"search": "kuri pull", "push": "not supported: kuri save, and a program that pushes", "build": "not supported: kuri load takes what others build",
	"commit": "not supported: kuri image diff and kuri cp show and copy what a container has changed", "volume": "kuri run -v, or volumes in a manifest", "volumes": "kuri run -v, or volumes in a manifest",
	"cluster-info": "kuri info", "node": "kuri info", "nodes": "kuri info", "ingress": "kuri port-forward", "expose": "kuri port-forward, or kuri run -p", "scale": "kuri run, once for each pod",
	"inspectp": "kuri inspect", "inspecti": "kuri image inspect", "describe": "kuri inspect",
	"get": "kuri pods, kuri ps or kuri images", "ls": "kuri pods, kuri ps or kuri images", "list": "kuri pods, kuri ps or kuri images",
	"img": "kuri images", "image-ls": "kuri images", "containers": "kuri ps", "container": "kuri ps", "pod": "kuri pods",
	"imagefsinfo": "kuri info",
	"export":      "kuri save", "import": "kuri load", "system": "kuri info or kuri prune", "forward": "kuri port-forward",
	"copy": "kuri cp", "log": "kuri logs", "sh": "kuri exec -it NAME sh", "remove-image": "kuri rmi",
}

// rootArgs checks the arguments in the place of a verb.
func rootArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if err := foreignVerb(args[:1]); err != nil {
		return err
	}
	return fmt.Errorf("there is no command %q%s", args[0], suggest(cmd.SuggestionsFor(args[0])))
}

// foreignVerb returns the error for a verb of another program among the arguments, or nil. Its
// flags belong to that program, too, so the search does not stop at an unknown flag.
func foreignVerb(args []string) error {
	for _, a := range args {
		if here, ok := elsewhere[a]; ok {
			if why, no := strings.CutPrefix(here, notSupported); no {
				return fmt.Errorf("there is no command %q: it is not supported%s", a, why)
			}
			return fmt.Errorf("there is no command %q: it is %s", a, here)
		}
	}
	return nil
}

// notSupported is the prefix of hints for verbs without a counterpart in kuri.
const notSupported = "not supported"

func suggest(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return ": did you mean " + strings.Join(names, " or ") + "?"
}

// FlagError rewords the errors of pflag in kuri's terms.
func FlagError(cmd *cobra.Command, err error) error {
	var value *pflag.InvalidValueError
	var unknown *pflag.NotExistError
	switch {
	case errors.As(err, &value):
		f := value.GetFlag()
		return fmt.Errorf("--%s %q: expected %s", f.Name, value.GetValue(), expected(f, value))
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() != "":
		return fmt.Errorf("unknown flag: -%s%s", unknown.GetSpecifiedName(), foreignFlag(cmd, unknown.GetSpecifiedName()))
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		return fmt.Errorf("unknown flag: --%s%s", name, cmp.Or(foreignFlag(cmd, name), suggest(flagsLike(cmd, name))))
	}
	return err
}

// expected returns the description of a flag's values.
func expected(f *pflag.Flag, wrong *pflag.InvalidValueError) string {
	switch f.Value.Type() {
	case "duration":
		text := "a duration such as 30s, 5m or 1h30m"
		if _, err := strconv.ParseFloat(wrong.GetValue(), 64); err == nil {
			text = "a duration with its unit: " + wrong.GetValue() + "s?"
		}
		return text
	case "int", "int64", "int32":
		return "a whole number"
	case "uint", "uint16", "uint32", "uint64":
		return "a whole number, 0 or more"
	case "bool":
		return "true or false"
	case "float64":
		return "a number"
	case "stringToString":
		return "KEY=VALUE"
	}
	return errors.Unwrap(wrong).Error()
}

// foreignFlags maps flags of crictl, docker and kubectl to their names here.
var foreignFlags = map[string]string{
	"format": "-o, --output", "filter": "--name, --label or --state", "selector": "--label", "digests": "-o wide", "show-labels": "-o wide", "last": "--sort age, which is usual: the youngest comes first", "latest": "--sort age, which is usual: the youngest comes first", "with-pull": "nothing: a missing image is pulled anyway", "no-pull": "--pull never", "signal": "--grace 0 to kill at once", "namespace": "NAMESPACE/POD in place of the pod's name", "n": "NAMESPACE/POD in place of the pod's name",
	"c": "POD/CONTAINER in place of the pod's name", "container": "POD/CONTAINER in place of the pod's name", "d": "nothing: this is how it works anyway",
	"time": "--grace", "grace-period": "--grace", "input": "-o", "truncate": "--no-trunc", "since-time": "--since", "creds": "kuri login",
	"all-namespaces": "nothing: all namespaces are listed anyway", "A": "nothing: all namespaces are listed anyway",
}

// foreignFlag returns a hint for a flag of another program.
func foreignFlag(cmd *cobra.Command, name string) string {
	if here, ok := foreignFlags[name]; ok && cmd.HasParent() {
		if strings.HasPrefix(here, "--") && cmd.Flags().Lookup(strings.Trim(strings.Fields(here)[0], "-,:")) == nil {
			return ""
		}
		return " (here it is " + here + ")"
	}
	return ""
}

// flagsLike returns the flags of a command with names similar to name.
func flagsLike(cmd *cobra.Command, name string) []string {
	var out []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden && (spelling.Distance(f.Name, name) <= 2 || len(name) > 2 && strings.HasPrefix(f.Name, name)) {
			out = append(out, "--"+f.Name)
		}
	})
	slices.Sort(out)
	return out
}
