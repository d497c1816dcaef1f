package cli

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/api/resource"
	numbers "k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/yaml"
)

// The formats of -o. Those with a template are followed by =TEMPLATE.
const (
	FormatTable    = "table"
	FormatWide     = "wide"
	FormatJSON     = "json"
	FormatYAML     = "yaml"
	formatPath     = "jsonpath"
	formatTemplate = "go-template"
)

// FormatFlag adds the flag -o to cmd.
func (c *CLI) FormatFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&c.Format, "output", "o", FormatTable,
		"`FORMAT`: table, wide, json, yaml, jsonpath=TEMPLATE or go-template=TEMPLATE")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(
		[]string{FormatTable, FormatWide, FormatJSON, FormatYAML, formatPath + "=", formatTemplate + "="},
		cobra.ShellCompDirectiveNoFileComp))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		name, text, templated := strings.Cut(c.Format, "=")
		switch name {
		case FormatTable, FormatWide, FormatJSON, FormatYAML:
			if !templated {
				return nil
			}
		case formatPath, formatTemplate:
			if !templated || text == "" {
				return Usagef("-o %s: expected a template, %s=TEMPLATE", c.Format, name)
			}
			if _, err := newTemplate(c.Format); err != nil {
				return Usagef("-o %s: %w", c.Format, err)
			}
			return nil
		}
		return Usagef("-o %s: expected table, wide, json, yaml, jsonpath=TEMPLATE or go-template=TEMPLATE", c.Format)
	}
}

// Tabular reports whether the output is for people.
func (c *CLI) Tabular() bool { return c.Format == FormatTable || c.Format == FormatWide }

// Wide returns cells for a wide table, and none for others.
func (c *CLI) Wide(cells ...string) []string {
	if c.Format == FormatWide {
		return cells
	}
	return nil
}

// Print writes v in the requested format, or calls table.
func (c *CLI) Print(v any, table func() error) error {
	if c.Tabular() {
		return table()
	}
	return c.PrintData(v)
}

// PrintData writes v as JSON or YAML, or with a template. v may be a message of the CRI, or a map
// or slice of such messages.
func (c *CLI) PrintData(v any) error {
	raw, err := Marshal(v)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	switch c.Format {
	case FormatYAML:
		if raw, err = yaml.JSONToYAML(raw); err != nil {
			return err
		}
		out.Write(raw)
	case FormatJSON:
		if err := json.Indent(&out, raw, "", "  "); err != nil {
			return err
		}
		out.WriteByte('\n')
	default:
		if err := byTemplate(&out, c.Format, raw); err != nil {
			return fmt.Errorf("-o %s: %w", c.Format, err)
		}
	}
	_, err = c.Out.Write(out.Bytes())
	return err
}

// byTemplate writes JSON with the template of a format, and a newline at the end.
func byTemplate(out *bytes.Buffer, format string, raw []byte) error {
	write, err := newTemplate(format)
	if err != nil {
		return err
	}
	var v any
	if err := numbers.Unmarshal(raw, &v); err != nil { // as encoding/json, but 1000000 is not 1e+06
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

// Marshal encodes messages as the CRI's JSON. It includes fields with their zero value: 0 is a state, too.
func Marshal(v any) ([]byte, error) {
	switch v := v.(type) {
	case proto.Message:
		return protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(v)
	case map[string]any:
		out := make(map[string]json.RawMessage, len(v))
		for k, e := range v {
			raw, err := Marshal(e)
			if err != nil {
				return nil, err
			}
			out[k] = raw
		}
		return json.Marshal(out)
	case []any:
		out := make([]json.RawMessage, 0, len(v))
		for _, e := range v {
			raw, err := Marshal(e)
			if err != nil {
				return nil, err
			}
			out = append(out, raw)
		}
		return json.Marshal(out)
	}
	return json.Marshal(v)
}

// UnpackInfo decodes the info of a verbose response, whose values usually are JSON in a string.
func UnpackInfo(info map[string]string) map[string]any {
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

// Table writes rows in columns. The first row is the header.
func Table(w io.Writer, rows [][]string) error {
	var widths []int
	cells := make([][]string, len(rows))
	for i, row := range rows {
		for j, cell := range row {
			cell = cmp.Or(Printable(cell), "-")
			if j == len(widths) {
				widths = append(widths, 0)
			}
			cells[i], widths[j] = append(cells[i], cell), max(widths[j], Width(cell))
		}
	}
	const gap = 3
	var out bytes.Buffer
	for _, row := range cells {
		for j, cell := range row {
			if out.WriteString(cell); j < len(row)-1 {
				out.WriteString(strings.Repeat(" ", widths[j]-Width(cell)+gap))
			}
		}
		out.WriteByte('\n')
	}
	_, err := w.Write(out.Bytes())
	return err
}

// Width returns the number of a terminal's columns that a text takes.
func Width(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		case unicode.Is(wide, r):
			n += 2
		default:
			n++
		}
	}
	return n
}

// Pad appends blanks to a text up to a width in columns.
func Pad(s string, width int) string { return s + strings.Repeat(" ", max(0, width-Width(s))) }

// wide has the characters of two columns: the ranges that Unicode's EastAsianWidth.txt calls W or F,
// without the narrow ones between emoji.
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x1100, 0x115f, 1}, {0x2e80, 0x303e, 1}, {0x3041, 0x4dbf, 1}, {0x4e00, 0xa4cf, 1}, {0xa960, 0xa97f, 1},
		{0xac00, 0xd7a3, 1}, {0xf900, 0xfaff, 1}, {0xfe30, 0xfe6f, 1}, {0xff00, 0xff60, 1}, {0xffe0, 0xffe6, 1},
	},
	R32: []unicode.Range32{
		{0x16fe0, 0x18d08, 1}, {0x1b000, 0x1b2fb, 1}, {0x1f300, 0x1f64f, 1}, {0x1f680, 0x1f6ff, 1}, {0x1f900, 0x1f9ff, 1},
		{0x20000, 0x3fffd, 1},
	},
}

// Printable replaces characters that could garble a table or a terminal, including those that reverse
// the direction of a text: names and labels come from other people.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || unicode.Is(unicode.Bidi_Control, r) {
			return '?'
		}
		return r
	}, s)
}

// ShortDuration renders a duration in at most two units, as kubectl does: 45s, 3m20s, 25m, 5h12m, 3d4h, 40d.
func ShortDuration(d time.Duration) string {
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

// Size renders a number of bytes.
func Size(n uint64) string {
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

// Count returns a number and a noun, with an s unless the number is 1: "1 image", "2 images".
func Count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

const ShortIDLength = 12

// TrimID shortens an id for a table and removes the name of its algorithm.
func TrimID(id string, full bool) string {
	if full {
		return id
	}
	_, hex, ok := strings.Cut(id, ":")
	if !ok {
		hex = id
	}
	return hex[:min(len(hex), ShortIDLength)]
}

// Age returns the time since nanos, which is in nanoseconds since the epoch, or "-" for 0.
func Age(nanos int64) string {
	if nanos <= 0 {
		return "-"
	}
	return ShortDuration(time.Since(time.Unix(0, nanos)))
}

// ParseBytes parses a number of bytes in docker's notation, where m is 1024 times 1024, or with a
// unit of Kubernetes.
func ParseBytes(s string) (resource.Quantity, error) {
	number := strings.TrimRight(s, "bBkKmMgGtTi")
	unit := strings.ToLower(s[len(number):])
	shift, ok := map[string]uint{"": 0, "b": 0, "k": 10, "m": 20, "g": 30,
		"t": 40}[strings.TrimSuffix(strings.TrimSuffix(unit, "b"), "i")]
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

// Columns returns the width of the terminal on standard output, or 100 for a file.
func (c *CLI) Columns() int {
	if file, ok := c.Out.(interface{ Fd() uintptr }); ok {
		if width, _, err := term.GetSize(int(file.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return 100
}

// Cut shortens a text to at most n columns.
func Cut(s string, n int) string {
	if Width(s) <= n {
		return s
	}
	r := []rune(s)
	for len(r) > 0 && Width(string(r)) > n-1 {
		r = r[:len(r)-1]
	}
	return string(r) + "…"
}
