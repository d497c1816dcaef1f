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

// RangeArgs checks the number of a command's arguments. None of them may be empty, except those beyond least of
// a command with any number of arguments: they may be those of a command in a container.
func RangeArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least && len(args) == 0:
			return fmt.Errorf("missing arguments: %s", cmd.UseLine())
		case len(args) < least:
			return fmt.Errorf("missing argument after %q: %s", args[len(args)-1], cmd.UseLine())
		case len(args) > most:
			return fmt.Errorf("unexpected argument %q: %s", args[most], cmd.UseLine())
		case most == Many:
			args = args[:least]
		}
		return noEmpty(args)
	}
}

// SomeNames checks the arguments of a command that takes at least so many names.
func SomeNames(least int) cobra.PositionalArgs {
	count := RangeArgs(least, Many)
	return func(cmd *cobra.Command, args []string) error {
		if err := count(cmd, args); err != nil {
			return err
		}
		return noEmpty(args)
	}
}

// noEmpty returns an error for an empty argument: usually a variable of a script is not set.
func noEmpty(args []string) error {
	if i := slices.Index(args, ""); i >= 0 {
		return fmt.Errorf("argument %d is empty: is a variable not set?", i+1)
	}
	return nil
}

// NoEmptyFlags returns an error for a text flag of cmd that was given an empty value. As a filter it would
// select everything.
func NoEmptyFlags(cmd *cobra.Command) error {
	var err error
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		if f.Changed && f.Value.Type() == "string" && f.Value.String() == "" {
			err = Usagef("--%s is empty: is a variable not set?", f.Name)
		}
	})
	return err
}

// NoArgs checks that a command has no arguments.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if cmd.Flags().Lookup("name") != nil {
		hint = ": --name " + args[0] + " selects by name"
	}
	return fmt.Errorf("%q takes no arguments, and there is %q%s", cmd.CommandPath(), args[0], hint)
}

// CommandGroup makes cmd a group of commands, which by itself prints its help.
func CommandGroup(cmd *cobra.Command) *cobra.Command {
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return fmt.Errorf("there is no command %q%s", cmd.CommandPath()+" "+args[0],
			cmp.Or(suggest(cmd.SuggestionsFor(args[0])), members(cmd)))
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	return cmd
}

// members returns the commands of a group as the end of an error message.
func members(cmd *cobra.Command) string {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ": it has " + strings.Join(names, ", ")
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
	var required *pflag.ValueRequiredError
	switch {
	case errors.As(err, &value):
		f := value.GetFlag()
		if hint := foreignTimeout(cmd, f, value.GetValue()); hint != "" {
			return fmt.Errorf("--%s %q: %s", f.Name, value.GetValue(), hint)
		}
		return fmt.Errorf("--%s %q: expected %s", f.Name, value.GetValue(), expected(f, value))
	case errors.As(err, &required):
		f := required.GetFlag()
		if f == nil {
			return err
		}
		name, _ := pflag.UnquoteUsage(f)
		spelt := "--" + f.Name
		if required.GetSpecifiedShortnames() != "" {
			spelt = "-" + f.Shorthand + " (--" + f.Name + ")"
		}
		return fmt.Errorf("%s needs a value, %s", spelt, name)
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
