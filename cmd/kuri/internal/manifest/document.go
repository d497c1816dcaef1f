package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Limits on the expansion of aliases in a small file.
const (
	maxValues = 1 << 19
	maxDepth  = 200
)

// documents returns the documents of a file as JSON, without empty ones. The file has one or more
// YAML documents, or consecutive JSON objects. It is read completely: bytes after a document are
// another document or an error.
//
// YAML is read as in other programs of Kubernetes: version 1.1, where yes and no are booleans.
// Merge keys are merged. A mapping's own keys take precedence over merged ones, and the first of
// several merged mappings over the others.
func documents(data []byte) ([][]byte, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if docs, err := jsonDocuments(data); err == nil {
		return docs, nil
	}
	var docs [][]byte
	for in := yaml.NewDecoder(bytes.NewReader(data)); ; {
		var root yaml.Node
		err := in.Decode(&root)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, syntaxError(data, err)
		}
		c := &converter{}
		value, err := c.value(&root, 0)
		if err != nil {
			return nil, err
		}
		if value == nil {
			continue
		}
		doc, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		docs = append(docs, doc)
	}
}

// jsonDocuments reads consecutive JSON objects.
func jsonDocuments(data []byte) ([][]byte, error) {
	if !bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{")) {
		return nil, errors.New("not JSON")
	}
	var docs [][]byte
	for in := json.NewDecoder(bytes.NewReader(data)); ; {
		var doc json.RawMessage
		err := in.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, err
		}
		docs = append(docs, doc)
	}
}

// atLine is the position in an error of the YAML library.
var atLine = regexp.MustCompile(`^yaml: (line (\d+): )?`)

// syntaxError returns the error for invalid YAML. It names a tab in the indentation, a frequent
// cause.
func syntaxError(data []byte, err error) error {
	m := atLine.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	text := strings.TrimPrefix(err.Error(), m[0])
	if strings.Contains(text, "<document start>") {
		text = "there is something after the end of a document; another one begins with a line of ---"
	}
	if m[2] == "" {
		return fmt.Errorf("not YAML: %s", text)
	}
	n, _ := strconv.Atoi(m[2])
	lines := bytes.Split(data, []byte("\n"))
	for i := max(n-2, 0); i < min(n+1, len(lines)); i++ { // the library's number may be off by one
		indent := lines[i][:len(lines[i])-len(bytes.TrimLeft(lines[i], " \t"))]
		if bytes.ContainsRune(indent, '\t') {
			return fmt.Errorf("line %d is not YAML: it is indented by a tab, and YAML takes spaces only", i+1)
		}
	}
	return fmt.Errorf("line %d is not YAML: %s", n, text)
}

// converter converts the nodes of a YAML document to JSON values.
type converter struct{ values int }

func (c *converter) value(n *yaml.Node, depth int) (any, error) {
	if c.values++; c.values > maxValues || depth > maxDepth {
		return nil, fmt.Errorf("line %d: too many values, or too deep: the aliases of a manifest are not to multiply", n.Line)
	}
	switch n.Kind {
	case yaml.DocumentNode:
		return c.value(n.Content[0], depth)
	case yaml.AliasNode:
		return c.value(n.Alias, depth+1)
	case yaml.SequenceNode:
		list := make([]any, 0, len(n.Content))
		for _, e := range n.Content {
			v, err := c.value(e, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		return list, nil
	case yaml.MappingNode:
		return c.mapping(n, depth)
	case yaml.ScalarNode:
		return scalar(n)
	}
	return nil, nil // an empty stream
}

func (c *converter) mapping(n *yaml.Node, depth int) (any, error) {
	out := make(map[string]any, len(n.Content)/2)
	lines := map[string]int{}
	var merged []*yaml.Node
	for pair := range slices.Chunk(n.Content, 2) {
		k := pair[0]
		if k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		switch {
		case k.Kind != yaml.ScalarNode || k.ShortTag() == "!!null":
			return nil, fmt.Errorf("line %d: a key must be text", pair[0].Line)
		case k.ShortTag() == "!!merge":
			merged = append(merged, pair[1])
			continue
		case lines[k.Value] != 0:
			return nil, fmt.Errorf("line %d: the key %q is there already, in line %d", pair[0].Line, k.Value, lines[k.Value])
		}
		v, err := c.value(pair[1], depth+1)
		if err != nil {
			return nil, err
		}
		out[k.Value], lines[k.Value] = v, pair[0].Line
	}
	for _, m := range merged {
		if err := c.merge(out, m, depth+1); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// merge adds the missing keys to a mapping, from another mapping or from each of a list.
func (c *converter) merge(to map[string]any, from *yaml.Node, depth int) error {
	v, err := c.value(from, depth)
	if err != nil {
		return err
	}
	list, several := v.([]any)
	if !several {
		list = []any{v}
	}
	for _, e := range list {
		mapping, ok := e.(map[string]any)
		if !ok {
			return fmt.Errorf("line %d: << takes a mapping, or a list of mappings", from.Line)
		}
		for k, v := range mapping {
			if _, has := to[k]; !has {
				to[k] = v
			}
		}
	}
	return nil
}

// yaml11 are the booleans of YAML 1.1 that YAML 1.2 does not have.
var yaml11 = map[string]bool{
	"y": true, "Y": true, "yes": true, "Yes": true, "YES": true, "on": true, "On": true, "ON": true,
	"n": false, "N": false, "no": false, "No": false, "NO": false, "off": false, "Off": false, "OFF": false,
}

// jsonNumber matches numbers that are valid in JSON as written.
var jsonNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)

func scalar(n *yaml.Node) (any, error) {
	plain := n.Style&(yaml.TaggedStyle|yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	switch tag := n.ShortTag(); tag {
	case "!!null":
		return nil, nil
	case "!!str", "!!timestamp":
		if b, ok := yaml11[n.Value]; ok && plain {
			return b, nil
		}
		return n.Value, nil
	case "!!bool", "!!int", "!!float", "!!binary":
		if plain && jsonNumber.MatchString(n.Value) {
			return json.Number(n.Value), nil
		}
		var v any
		if err := n.Decode(&v); err != nil {
			return nil, fmt.Errorf("line %d: %q: %w", n.Line, n.Value, err)
		}
		if f, ok := v.(float64); ok && (math.IsNaN(f) || math.IsInf(f, 0)) {
			return nil, fmt.Errorf("line %d: %s is no number that a manifest may have", n.Line, n.Value)
		}
		return v, nil
	default:
		return nil, fmt.Errorf("line %d: the tag %s is not known", n.Line, tag)
	}
}
