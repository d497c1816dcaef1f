package oci

import (
	"slices"
	"strings"

	"C" // for env.c
)

// rawEnv is the prefix of encoded environment entries, which are not UTF-8. Package spec writes
// them and env.c reads them.
const rawEnv = "_KURI_RAW_"

// withRawEnv returns the arguments of a process. If its environment has encoded entries, they begin
// with this program, which decodes those.
func withRawEnv(args, env []string) []string {
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, rawEnv) }) {
		return args
	}
	return append([]string{"/proc/self/exe"}, args...)
}
