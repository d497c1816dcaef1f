package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/yaml"
)

// The formats of -o. Those with a template are followed by =TEMPLATE.
const (
	formatTable    = "table"
	formatWide     = "wide"
	formatJSON     = "json"
	formatYAML     = "yaml"
	formatPath     = "jsonpath"
	formatTemplate = "go-template"
)

// formatFlag gives cmd the flag -o.
func (c *cli) formatFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&c.format, "output", "o", formatTable, "`FORMAT`: table, wide, json, yaml, jsonpath=TEMPLATE or go-template=TEMPLATE")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(
		[]string{formatTable, formatWide, formatJSON, formatYAML, formatPath + "=", formatTemplate + "="}, cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		name, text, templated := strings.Cut(c.format, "=")
		switch name {
		case formatTable, formatWide, formatJSON, formatYAML:
			if !templated {
				return nil
			}
		case formatPath, formatTemplate:
			if !templated || text == "" {
				return usagef("-o %s: expected a template, %s=TEMPLATE", c.format, name)
			}
			if _, err := newTemplate(c.format); err != nil {
				return usagef("-o %s: %w", c.format, err)
			}
			return nil
		}
		return usagef("-o %s: expected table, wide, json, yaml, jsonpath=TEMPLATE or go-template=TEMPLATE", c.format)
	}
}

// tabular reports whether the output is for people.
func (c *cli) tabular() bool { return c.format == formatTable || c.format == formatWide }

// wide returns cells that are in a wide table only.
func (c *cli) wide(cells ...string) []string {
	if c.format == formatWide {
		return cells
	}
	return nil
}

// newTemplate returns what writes a value by the template of a format.
func newTemplate(format string) (func(io.Writer, any) error, error) {
	name, text, _ := strings.Cut(format, "=")
	if name == formatTemplate {
		t, err := template.New("template").Parse(text)
		if err != nil {
			return nil, err
		}
		return t.Execute, nil
	}
	if !strings.Contains(text, "{") { // as kubectl takes it
		text = "{." + strings.TrimPrefix(text, ".") + "}"
	}
	path := jsonpath.New("template").AllowMissingKeys(true)
	if err := path.Parse(text); err != nil {
		return nil, err
	}
	return path.Execute, nil
}

// print writes v in the format that was asked for, or calls table.
func (c *cli) print(v any, table func() error) error {
	if c.tabular() {
		return table()
	}
	return c.printData(v)
}

// printData writes v as JSON or YAML, or by a template. v may be a message of the CRI, or a map or slice of such messages.
func (c *cli) printData(v any) error {
	raw, err := marshal(v)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	switch c.format {
	case formatYAML:
		if raw, err = yaml.JSONToYAML(raw); err != nil {
			return err
		}
		out.Write(raw)
	case formatJSON:
		if err := json.Indent(&out, raw, "", "  "); err != nil {
			return err
		}
		out.WriteByte('\n')
	default:
		if err := byTemplate(&out, c.format, raw); err != nil {
			return fmt.Errorf("-o %s: %w", c.format, err)
		}
	}
	_, err = c.out.Write(out.Bytes())
	return err
}

// byTemplate writes JSON by the template of a format, with a newline at its end.
func byTemplate(out *bytes.Buffer, format string, raw []byte) error {
	write, err := newTemplate(format)
	if err != nil {
		return err
	}
	var v any
	in := json.NewDecoder(bytes.NewReader(raw))
	if err := in.Decode(&v); err != nil {
		return err
	}
	if err := write(out, v); err != nil {
		return err
	}
	if text := out.Bytes(); len(text) > 0 && text[len(text)-1] != '\n' {
		out.WriteByte('\n')
	}
	return nil
}

// marshal encodes messages as the CRI's JSON, with fields that have their zero value: 0 is a state too.
func marshal(v any) ([]byte, error) {
	switch v := v.(type) {
	case proto.Message:
		return protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(v)
	case map[string]any:
		out := make(map[string]json.RawMessage, len(v))
		for k, e := range v {
			raw, err := marshal(e)
			if err != nil {
				return nil, err
			}
			out[k] = raw
		}
		return json.Marshal(out)
	case []any:
		out := make([]json.RawMessage, 0, len(v))
		for _, e := range v {
			raw, err := marshal(e)
			if err != nil {
				return nil, err
			}
			out = append(out, raw)
		}
		return json.Marshal(out)
	}
	return json.Marshal(v)
}

// unpack turns the info of a verbose answer into what it holds: its values are most often JSON in a string.
func unpack(info map[string]string) map[string]any {
	out := make(map[string]any, len(info))
	for k, s := range info {
		if json.Valid([]byte(s)) {
			out[k] = json.RawMessage(s)
		} else {
			out[k] = s
		}
	}
	return out
}

// table writes rows in columns. The first row is the head.
func table(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = printable(cell); cell == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// printable takes out what could confuse a table or a terminal: names and labels come from other people.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// short renders a duration in at most two units, as kubectl does: 45s, 3m20s, 25m, 5h12m, 3d4h, 40d.
func short(d time.Duration) string {
	const day = 24 * time.Hour
	two := func(big, small time.Duration, bigUnit, smallUnit string) string {
		s := fmt.Sprintf("%d%s", d/big, bigUnit)
		if rest := d % big / small; rest > 0 {
			s += fmt.Sprintf("%d%s", rest, smallUnit)
		}
		return s
	}
	switch {
	case d < time.Second:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 10*time.Minute:
		return two(time.Minute, time.Second, "m", "s")
	case d < 3*time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 8*time.Hour:
		return two(time.Hour, time.Minute, "h", "m")
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d < 8*day:
		return two(day, time.Hour, "d", "h")
	}
	return fmt.Sprintf("%dd", d/day)
}

// size renders a number of bytes.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1023.95 && u < len(units)-1 {
		f /= 1024
		u++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[u])
}

const shortID = 12

// trim shortens an id for a table, without the name of its algorithm.
func trim(id string, full bool) string {
	if full {
		return id
	}
	_, hex, ok := strings.Cut(id, ":")
	if !ok {
		hex = id
	}
	return hex[:min(len(hex), shortID)]
}

// ago tells for how long something has been there, given when it began in nanoseconds since the epoch.
func ago(nanos int64) string {
	if nanos <= 0 {
		return "-"
	}
	return short(time.Since(time.Unix(0, nanos)))
}

// dockerBytes reads a number of bytes as docker does, where m is 1024 times 1024, or as Kubernetes does where the unit says so.
func dockerBytes(s string) (resource.Quantity, error) {
	number := strings.TrimRight(s, "bBkKmMgGtTi")
	unit := strings.ToLower(s[len(number):])
	shift, ok := map[string]uint{"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}[strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")]
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !ok || f <= 0 || f*float64(uint64(1)<<shift) > 1<<50 {
		return resource.Quantity{}, errors.New("expected a number of bytes such as 64m, 1.5g or 64Mi")
	}
	const least = 1 << 20
	bytes := int64(f * float64(uint64(1)<<shift))
	if bytes < least {
		return resource.Quantity{}, fmt.Errorf("that is %d bytes, in which nothing runs: did you mean %sm?", bytes, number)
	}
	return *resource.NewQuantity(bytes, resource.BinarySI), nil
}

// columns is the width of the terminal that the output is, or a good one for a file.
func (c *cli) columns() int {
	if file, ok := c.out.(interface{ Fd() uintptr }); ok {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return 100
}

// cut shortens a text to at most n characters.
func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
