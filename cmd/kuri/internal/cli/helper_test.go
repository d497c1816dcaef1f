package cli

import (
	"bytes"
	"strings"
)

// newCLI is clitest.New for the tests of this package: clitest imports it.
func newCLI(env map[string]string) (c *CLI, out, errs *bytes.Buffer) {
	out, errs = &bytes.Buffer{}, &bytes.Buffer{}
	return &CLI{In: strings.NewReader(""), Out: out, Err: errs,
		Env: func(k string) string { return env[k] }, Version: "dev"}, out, errs
}
