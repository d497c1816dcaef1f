package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// jsonError returns the error for a document that cannot be decoded. A value of a wrong type is
// described in the terms of JSON, not of Go.
func jsonError(err error) error {
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return err
	}
	field := "it"
	if name := embedded.Replace(wrong.Field); name != "" {
		field = fmt.Sprintf("the field %q", clip(name))
	}
	has, _, _ := strings.Cut(wrong.Value, " ") // "number 1.5"
	return fmt.Errorf("%s is of type %s, not %s", field, has, jsonType(wrong.Type))
}

// embedded removes the names of embedded structs from the name of a field.
var embedded = strings.NewReplacer("ImageConfig.", "", "Platform.", "")

// jsonType returns the JSON type that is decoded into a Go type.
func jsonType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "bool"
	case reflect.String:
		return "string"
	case reflect.Slice, reflect.Array:
		return "array"
	case reflect.Struct, reflect.Map, reflect.Pointer:
		return "object"
	}
	return "number"
}
