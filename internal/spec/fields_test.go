package spec

import (
	"bufio"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fieldTable reads testdata/fields.txt: the outcome for each field of a request.
func fieldTable(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open("testdata/fields.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table := make(map[string]string)
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] == "#" {
			continue
		}
		if _, twice := table[fields[0]]; twice {
			t.Errorf("fields.txt has %s twice", fields[0])
		}
		if !slices.Contains([]string{"honoured", "refused", "elsewhere", "part"}, fields[1]) {
			t.Errorf("fields.txt: %s is %q, which is nothing that can become of a field", fields[0], fields[1])
		}
		if fields[1] == "elsewhere" && len(fields) < 3 {
			t.Errorf("fields.txt: %s is honoured elsewhere, but where?", fields[0])
		}
		table[fields[0]] = fields[1]
	}
	return table
}

// walk calls each for every field of a message and of its nested messages, with "message.field" as
// the name.
func walk(m protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool,
	each func(name string, f protoreflect.FieldDescriptor)) {
	if seen[m.FullName()] {
		return
	}
	seen[m.FullName()] = true
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		each(string(m.Name())+"."+string(f.Name()), f)
		if f.Message() != nil && !f.IsMap() && f.Name() != "windows" {
			walk(f.Message(), seen, each)
		}
	}
}

// TestEveryFieldIsInTheTable fails when cri-api has a new field without an outcome.
func TestEveryFieldIsInTheTable(t *testing.T) {
	table := fieldTable(t)
	seen := make(map[protoreflect.FullName]bool)
	here := make(map[string]bool)
	for _, m := range []proto.Message{&runtime.PodSandboxConfig{}, &runtime.ContainerConfig{}} {
		walk(m.ProtoReflect().Descriptor(), seen, func(name string, _ protoreflect.FieldDescriptor) {
			here[name] = true
			if table[name] == "" {
				t.Errorf("%s is not in testdata/fields.txt: honour it, or refuse it by name, and say so there", name)
			}
		})
	}
	for name := range table {
		if !here[name] {
			t.Errorf("testdata/fields.txt has %s, which is not a field of cri-api", name)
		}
	}
}

// TestRefusedFieldsAreRefusedByName checks that each field listed as "refused" has a test of its
// rejection.
func TestRefusedFieldsAreRefusedByName(t *testing.T) {
	var shown []string
	for _, r := range refusals() {
		shown = append(shown, r.field)
	}
	for _, r := range sandboxRefusals() {
		shown = append(shown, r.field)
	}
	for name, what := range fieldTable(t) {
		_, field, _ := strings.Cut(name, ".")
		if what == "refused" && !slices.ContainsFunc(shown,
			func(s string) bool { return s == field || strings.HasSuffix(s, "."+field) }) {
			t.Errorf("%s is to be refused, but no test shows it", name)
		}
	}
}

// TestHonouredFieldsTakeEffect removes each honoured field from configurations that have all of
// them: the spec, the notes or the error must change.
func TestHonouredFieldsTakeEffect(t *testing.T) {
	table := fieldTable(t)
	effective := make(map[string]bool)
	for _, file := range []string{"kubelet", "privileged-poor-node", "own-namespaces", "target", "mounts",
		"capabilities", "devices", "node-namespaces", "userns", "defaults"} {
		c := readCase(t, "testdata/golden/"+file+".yaml")
		outcome := func(in Input) string {
			spec, notes, err := Container(in)
			if err != nil {
				return err.Error()
			}
			body, err := json.Marshal(spec)
			if err != nil {
				t.Fatal(err)
			}
			return string(body) + strings.Join(notes, "\n")
		}
		full := outcome(c.input(t))
		for _, pick := range []func(in Input) protoreflect.Message{
			func(in Input) protoreflect.Message { return in.Container.ProtoReflect() },
			func(in Input) protoreflect.Message { return in.Pod.ProtoReflect() },
		} {
			for _, path := range setFields(pick(c.input(t)), nil) {
				in := c.input(t)
				name := clearField(pick(in), path)
				// A mount or a device also has a resolved counterpart.
				in.Mounts = in.Mounts[:len(in.Container.GetMounts())]
				if outcome(in) != full {
					effective[name] = true
				}
			}
		}
	}
	for name, what := range table {
		if what == "honoured" && !effective[name] {
			t.Errorf("%s is honoured, says the table, but taking it away changes nothing in any golden file", name)
		}
	}
}

// setFields returns the path to each set field of m.
func setFields(m protoreflect.Message, prefix []protoreflect.FieldDescriptor) [][]protoreflect.FieldDescriptor {
	var out [][]protoreflect.FieldDescriptor
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := append(slices.Clone(prefix), f)
		out = append(out, path)
		switch {
		case f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := range v.List().Len() {
				for _, p := range setFields(v.List().Get(i).Message(), path) {
					if !slices.ContainsFunc(out, func(o []protoreflect.FieldDescriptor) bool {
						return slices.Equal(o,
							p)
					}) {
						out = append(out, p)
					}
				}
			}
		default:
			out = append(out, setFields(v.Message(), path)...)
		}
		return true
	})
	return out
}

// clearField clears the field at the end of path in m, in every element of the lists on the way,
// and returns its name.
func clearField(m protoreflect.Message, path []protoreflect.FieldDescriptor) string {
	f := path[0]
	if len(path) == 1 {
		m.Clear(f)
		return string(m.Descriptor().Name()) + "." + string(f.Name())
	}
	if !f.IsList() {
		return clearField(m.Mutable(f).Message(), path[1:])
	}
	list, name := m.Mutable(f).List(), ""
	for i := range list.Len() {
		name = clearField(list.Get(i).Message(), path[1:])
	}
	return name
}
