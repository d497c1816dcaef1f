package oci

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
)

// environ is the position of the environment in a request.
type environ struct {
	start, end int
	entries    int
	hasTerm    bool
}

// defaultTerm is added to the environment of a process that has a terminal but no TERM, as Docker
// and containerd do.
const defaultTerm = "TERM=xterm"

func hasTerm(env []string) bool {
	return slices.ContainsFunc(env, func(entry string) bool { return strings.HasPrefix(entry, "TERM=") })
}

// begin returns the beginning of a request, which all processes of the container have in common.
// With a terminal it includes a TERM.
func (x *Executor) begin(terminal bool) message {
	if !terminal || x.env.hasTerm {
		return message(bytes.Clone(x.request))
	}
	var m message
	m = append(m, x.request[:x.env.start]...)
	m.u32(uint32(x.env.entries + 1))
	m = append(m, x.request[x.env.start+4:x.env.end]...)
	m.str(defaultTerm)
	return append(m, x.request[x.env.end:]...)
}

// environment returns the environment of a process. The last of several entries with the same name
// wins. Entries that are not UTF-8 are decoded. hasHome is false for an empty HOME, which is left
// out, as libcontainer does.
func environment(entries []string) (env []string, hasHome bool, err error) {
	seen := make(map[string]bool, len(entries))
	for _, entry := range slices.Backward(entries) {
		if strings.HasPrefix(entry, rawEnv) {
			_, digits, _ := strings.Cut(entry, "=")
			raw, err := hex.DecodeString(digits)
			if err != nil {
				return nil, false, fmt.Errorf("environment entry %s: %w", entry, err)
			}
			entry = string(raw)
		}
		key, value, ok := strings.Cut(entry, "=")
		if !ok || key == "" || strings.Contains(entry, "\x00") {
			return nil, false, fault.New(fault.Unstartable, "environment entry %q is not NAME=value", entry)
		}
		if seen[key] {
			continue
		}
		seen[key] = true
		if key == "HOME" {
			if value == "" {
				continue
			}
			hasHome = true
		}
		env = append(env, entry)
	}
	slices.Reverse(env)
	return env, hasHome, nil
}
