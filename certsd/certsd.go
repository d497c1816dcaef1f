// Package certsd checks the keys of hosts.toml, the per-registry file in certs.d, whose format
// containerd defines. kurid and kuri login share it, so both reject the same misspelt keys.
//
// It is pure: it opens no file and keeps no state.
package certsd

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/kuri-cri/kuri/spelling"
)

// hostKeys are the keys of a host: containerd's, and Kuri's own auth.
type hostKeys struct {
	Capabilities any `toml:"capabilities"`
	CA           any `toml:"ca"`
	Client       any `toml:"client"`
	SkipVerify   any `toml:"skip_verify"`
	Header       any `toml:"header"`
	OverridePath any `toml:"override_path"`
	DialTimeout  any `toml:"dial_timeout"`
	Auth         any `toml:"auth"`
}

var (
	knownOfHost = []string{"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout",
		"auth"}
	knownOfFile = append([]string{"server", "host"}, knownOfHost...)
)

// Check returns the unknown keys of a hosts.toml with their lines. body must be valid TOML. A key
// that resembles a known one is an error that suggests that one, because it would otherwise be
// ignored silently. So is a value of a wrong type. Any other unknown key may belong to another
// program.
func Check(body []byte) (unknown []string, err error) {
	var keys struct {
		hostKeys
		Server any                 `toml:"server"`
		Host   map[string]hostKeys `toml:"host"`
	}
	var strict *toml.StrictMissingError
	if err := toml.NewDecoder(bytes.NewReader(body)).DisallowUnknownFields().Decode(&keys); !errors.As(err, &strict) {
		return nil, checkValues(body)
	}
	for _, e := range strict.Errors {
		path, known := e.Key(), knownOfFile
		name := path[0]
		if len(path) > 2 && path[0] == "host" {
			name, known = path[2], knownOfHost
		}
		line, _ := e.Position()
		if meant := misspelt(name, known); meant != "" {
			return nil, fmt.Errorf("line %d: the key %q is not known: is %s meant?", line, name, meant)
		}
		if text := fmt.Sprintf("%q (line %d)", name, line); !slices.Contains(unknown, text) {
			unknown = append(unknown, text)
		}
	}
	return unknown, checkValues(body)
}

// misspelt returns the known key that name resembles, or "".
func misspelt(name string, known []string) string {
	plain := strings.NewReplacer("_", "", "-", "", " ", "").Replace(strings.ToLower(name))
	for _, k := range known {
		meant := strings.ReplaceAll(k, "_", "")
		if plain == meant || len(meant) > 4 && strings.Contains(plain, meant) ||
			spelling.Distance(plain, meant) <= min(2, len(meant)/3) {
			return k
		}
	}
	return ""
}
