package oci

import (
	"slices"
	"strings"

	"C" // for env.c
)

// rawEnv begins the names of environment entries that are encoded because they are not UTF-8: package spec writes them,
// env.c reads them.
const rawEnv = "_KURI_RAW_"

// withRawEnv returns the arguments by which a process with encoded entries in its environment is started: this program,
// which decodes them, stands before them.
func withRawEnv(args, env []string) []string {
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, rawEnv) }) {
		return args
	}
	return append([]string{"/proc/self/exe"}, args...)
}
