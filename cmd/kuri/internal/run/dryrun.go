package run

import (
	"errors"
	"fmt"

	"sigs.k8s.io/yaml"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

// dryRunFlag is the value of --dry-run: kubectl's, where the flag alone means client.
type dryRunFlag string

func (f *dryRunFlag) String() string { return string(*f) }
func (f *dryRunFlag) Type() string   { return "" }

func (f *dryRunFlag) Set(value string) error {
	switch value {
	case "client", "true":
		*f = "client"
	case "none", "false":
		*f = ""
	default:
		return errors.New("nothing, or client: there is no API server to ask")
	}
	return nil
}

// printPods prints pods as they would be run: as YAML documents, or in the requested format, where several pods
// are a List. kuri run takes YAML and JSON as a manifest again.
func printPods(c *cli.CLI, pods []*manifest.Pod) error {
	list := make([]any, 0, len(pods))
	for _, p := range pods {
		list = append(list, p.Effective())
	}
	if c.Format != cli.FormatYAML && !c.Tabular() {
		if len(list) == 1 {
			return c.PrintData(list[0])
		}
		return c.PrintData(map[string]any{"apiVersion": "v1", "kind": "List", "items": list})
	}
	for i, p := range list {
		text, err := yaml.Marshal(p)
		if err != nil {
			return err
		}
		separator := "---\n"
		if i == 0 {
			separator = ""
		}
		if _, err := fmt.Fprint(c.Out, separator, string(text)); err != nil {
			return err
		}
	}
	return nil
}
