package cli

import (
	"errors"
	"io"
	"regexp"
	"strings"
	"text/template"

	"k8s.io/client-go/util/jsonpath"
)

// newTemplate returns a function that writes a value with the template of a format.
func newTemplate(format string) (func(io.Writer, any) error, error) {
	name, text, _ := strings.Cut(format, "=")
	if name == formatTemplate {
		t, err := template.New(templateName).Parse(text)
		if err != nil {
			return nil, templateError(err)
		}
		return func(w io.Writer, v any) error { return templateError(t.Execute(w, v)) }, nil
	}
	if !strings.Contains(text, "{") { // kubectl accepts this, too
		text = "{." + strings.TrimPrefix(text, ".") + "}"
	}
	path := jsonpath.New(templateName).AllowMissingKeys(true)
	if err := path.Parse(text); err != nil {
		return nil, templateError(err)
	}
	return func(w io.Writer, v any) error { return templateError(path.Execute(w, v)) }, nil
}

// templateName is the name of a template, which text/template puts into its errors.
const templateName = "template"

// templatePlace matches the beginning of an error of text/template: `template: NAME:LINE:COLUMN: `, and in an
// execution `executing "NAME" at <PIPELINE>: `.
var templatePlace = regexp.MustCompile(
	`^template: ` + templateName + `:[0-9:]* (?:executing "` + templateName + `" at <(.*?)>: )?`)

// goTerms has JSON's terms for those of Go in errors of templates.
var goTerms = strings.NewReplacer(
	"reflect: call of reflect.Value.Type on zero Value", "there is no value",
	"map[string]interface {}", "an object", "[]interface {}", "a list",
	"slice/array", "a list", "array or slice", "a list", "untyped nil", "nothing",
	" in type interface {}", "", "interface {}", "a value",
	"float64", "a number", "type string", "a text", "type int", "a number",
)

// templateError rewrites an error of a template in the terms of JSON. It names the part of the template that
// failed, but not a line and a column of what is one line on a command line.
func templateError(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if m := templatePlace.FindStringSubmatch(text); m != nil {
		if text = text[len(m[0]):]; m[1] != "" {
			text = m[1] + ": " + text
		}
	}
	return errors.New(goTerms.Replace(text))
}
