package certsd

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, c := range []struct{ file, unknown, err string }{
		{"server = 'https://a'\n[host.'https://b']\ncapabilities = ['pull']\nskip_verify = true", "", ""},
		{"server = 'https://a'\nskip-verify = true", "",
			`line 2: the key "skip-verify" is not known: is skip_verify meant?`},
		{"[host.'https://b']\ncapabilites = ['pull']", "", "is capabilities meant?"},
		{"[hosts.'https://b']\nca = 'x'", "", "is host meant?"},
		{"sever = 'https://a'", "", "is server meant?"},
		{"color = 'blue'", `"color" (line 1)`, ""},
	} {
		unknown, err := Check([]byte(c.file))
		if strings.Join(unknown, ",") != c.unknown || (err == nil) != (c.err == "") ||
			err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %v, %v", c.file, unknown, err)
		}
	}
}
