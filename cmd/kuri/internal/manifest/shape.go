package manifest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// shape compares the values of a manifest with the types of their fields, so that a value of the
// wrong type is reported with its place, in plain words. It leaves unknown fields to the decoder.
type shape struct{ warnings, problems []string }

func (s *shape) wrong(at, format string, args ...any) {
	s.problems = append(s.problems, at+": "+fmt.Sprintf(format, args...))
}

var (
	quantityType    = reflect.TypeFor[resource.Quantity]()
	intOrStringType = reflect.TypeFor[intstr.IntOrString]()
	timeTypes       = []reflect.Type{reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime]()}
	unmarshalerType = reflect.TypeFor[json.Unmarshaler]()
)

// check visits the value v at the place at, for a field of type t.
func (s *shape) check(v any, t reflect.Type, at string) {
	if v == nil {
		return
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case t == quantityType:
		s.quantity(v, at)
		return
	case t == intOrStringType:
		if !isKind(v, "text") && !isKind(v, "a number") {
			s.wrong(at, "expected a number or text, and it is %s", kindOf(v))
		}
		return
	case slices.Contains(timeTypes, t):
		if text, ok := v.(string); !ok {
			s.mismatch(v, "a time", at)
		} else if _, err := time.Parse(time.RFC3339, text); err != nil {
			s.wrong(at, "%q is not a time such as 2026-01-02T15:04:05Z", text)
		}
		return
	case reflect.PointerTo(t).Implements(unmarshalerType):
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		s.fields(v, t, at)
	case reflect.Map:
		m, ok := v.(map[string]any)
		if !ok {
			s.mismatch(v, "a mapping", at)
			return
		}
		for _, k := range slices.Sorted(maps.Keys(m)) {
			s.check(m[k], t.Elem(), at+"["+k+"]")
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return
		}
		list, ok := v.([]any)
		if !ok {
			s.mismatch(v, "a list", at)
			return
		}
		for i, e := range list {
			s.check(e, t.Elem(), fmt.Sprintf("%s[%d]", at, i))
		}
	case reflect.String:
		if _, ok := v.(string); !ok {
			s.mismatch(v, "text", at)
		}
	case reflect.Bool:
		if _, ok := v.(bool); !ok {
			s.mismatch(v, "true or false", at)
		}
	case reflect.Int, reflect.Int32, reflect.Int64:
		s.integer(v, t, at)
	}
}

// fields compares a mapping with the fields of a struct.
func (s *shape) fields(v any, t reflect.Type, at string) {
	m, ok := v.(map[string]any)
	if !ok {
		s.mismatch(v, "a mapping", at)
		return
	}
	for i := range t.NumField() {
		name, inline := jsonName(t.Field(i))
		if inline {
			s.fields(v, t.Field(i).Type, at)
			continue
		}
		if e, has := m[name]; has {
			s.check(e, t.Field(i).Type, join(at, name))
		}
	}
}

func (s *shape) integer(v any, t reflect.Type, at string) {
	n, ok := v.(json.Number)
	if !ok {
		s.mismatch(v, "a whole number", at)
		return
	}
	if f, err := n.Float64(); err == nil && f == math.Trunc(f) {
		if _, err := strconv.ParseInt(n.String(), 10, t.Bits()); err == nil {
			return
		}
		if f < -math.Pow(2, float64(t.Bits()-1)) || f >= math.Pow(2, float64(t.Bits()-1)) {
			s.wrong(at, "%s is out of range", n)
			return
		}
	}
	s.wrong(at, "expected a whole number such as 7, and it is %s", n)
}

// mismatch reports a value of the wrong type, with a hint if quotes or brackets would correct it.
func (s *shape) mismatch(v any, want, at string) {
	hint := ""
	switch text, isText := v.(string); {
	case want == "text" && isKind(v, "a number", "true or false"):
		hint = fmt.Sprintf(`: write it in quotes, "%v"`, v)
	case want == "true or false" && isText && (text == "true" || text == "false"),
		want == "a whole number" && isText && jsonNumber.MatchString(text):
		hint = ": leave out the quotes"
	case want == "a list" && !isKind(v, "a mapping"):
		hint = fmt.Sprintf(": write it in brackets, [%v]", v)
	}
	s.wrong(at, "expected %s, and it is %s%s", want, kindOf(v), hint)
}

func isKind(v any, kinds ...string) bool { return slices.Contains(kinds, kindOf(v)) }

func kindOf(v any) string {
	switch v.(type) {
	case string:
		return "text"
	case json.Number:
		return "a number"
	case bool:
		return "true or false"
	case []any:
		return "a list"
	case map[string]any:
		return "a mapping"
	}
	return "nothing"
}

// resourceName matches the resource at the end of a quantity's place, such as "limits[memory]".
var resourceName = regexp.MustCompile(`(?:limits|requests|overhead)\[([^\]]+)\]$`)

func (s *shape) quantity(v any, at string) {
	if !isKind(v, "text", "a number") {
		s.mismatch(v, "a quantity such as 500m or 64Mi", at)
		return
	}
	text := fmt.Sprint(v)
	bytes, cpu := strings.HasSuffix(at, "sizeLimit"), false
	if m := resourceName.FindStringSubmatch(at); m != nil {
		bytes = m[1] == "memory" || m[1] == "ephemeral-storage" || strings.HasPrefix(m[1], hugepages)
		cpu = m[1] == "cpu"
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		s.wrong(at, "%q is not a quantity%s", text, suggestion(text, bytes, cpu))
		return
	}
	number, unit := splitUnit(text)
	switch {
	case q.Sign() <= 0: // checked by the validator
	case bytes && slices.Contains([]string{"m", "u", "n"}, unit):
		s.wrong(at, "%s is not even whole bytes, as m means a thousandth: did you mean %sMi?", text, number)
	case bytes && q.CmpInt64(1<<20) < 0 && !strings.Contains(at, "requests["):
		s.wrong(at, "%s is %d bytes, in which nothing runs: did you mean %sMi?", text, q.Value(), number)
	case bytes && q.CmpInt64(1<<20) < 0:
		s.warnings = append(s.warnings, fmt.Sprintf("%s: %s is %d bytes: did you mean %sMi?", at, text, q.Value(), number))
	case cpu && unit != "" && unit != "m" && unit != "u" && unit != "n":
		s.wrong(at, "%s is %s cores: did you mean %sm, thousandths of a core?", text, q.AsDec(), number)
	case cpu && q.CmpInt64(manyCores) >= 0:
		s.warnings = append(s.warnings, fmt.Sprintf("%s: %s is %d whole cores: did you mean %sm, thousandths of a core?", at,
			text, q.Value(), number))
	}
}

// manyCores is the number of cores from which thousandths may have been meant.
const manyCores = 100

// splitUnit splits "64Mi" into the number and the unit.
func splitUnit(text string) (number, unit string) {
	number = strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	return number, strings.TrimSpace(text[len(number):])
}

// suggestion returns a hint with the probable meaning of an invalid quantity.
func suggestion(text string, bytes, cpu bool) string {
	number, unit := splitUnit(strings.TrimSpace(strings.ReplaceAll(text, ",", ".")))
	if _, err := strconv.ParseFloat(number, 64); err != nil {
		return ": expected a number with a unit, such as 500m or 64Mi"
	}
	lower := strings.ToLower(unit)
	switch {
	case cpu && (strings.HasPrefix(lower, "core") || strings.HasPrefix(lower, "cpu")):
		return ": did you mean " + number + "?"
	case strings.HasPrefix(lower, "milli"), cpu && strings.HasPrefix(lower, "m"):
		return ": did you mean " + number + "m?"
	case !bytes && unit != "":
		return ": the units are m (thousandths) and k, M, G, or Ki, Mi, Gi"
	case lower == "b", lower == "byte", lower == "bytes":
		return ": did you mean " + number + "? Bytes have no unit"
	case lower != "" && strings.Contains("kmgtpe", lower[:1]):
		return ": did you mean " + number + strings.ToUpper(lower[:1]) + "i?"
	case unit == "":
		return ": did you mean " + number + "?"
	}
	return ": the units are k, M, G, or Ki, Mi, Gi"
}
