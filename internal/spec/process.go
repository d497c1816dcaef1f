package spec

import (
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultPath is the PATH of a container if neither the image nor the configuration sets one.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func (t *translation) process() error {
	args, err := t.args()
	if err != nil {
		return err
	}
	env, err := t.env()
	if err != nil {
		return err
	}
	cwd, err := t.cwd()
	if err != nil {
		return err
	}
	if err := t.checkIDs(); err != nil {
		return err
	}
	p := t.spec.Process
	p.Args, p.Env, p.Cwd = args, env, cwd
	p.Terminal = t.in.Container.GetTty()
	p.NoNewPrivileges = t.security().GetNoNewPrivs()
	p.User = specs.User{UID: t.in.User.UID, GID: t.in.User.GID, AdditionalGids: t.in.User.AdditionalGIDs}
	t.spec.Root.Readonly = t.security().GetReadonlyRootfs()
	return nil
}

// args follows Kubernetes: a command replaces the image's entrypoint and cmd, args replace only the
// cmd. A command that cannot be executed is for the OCI runtime to report, so that the container's
// start fails and not its creation.
func (t *translation) args() ([]string, error) {
	command, args := t.in.Container.GetCommand(), t.in.Container.GetArgs()
	if len(command) == 0 {
		command = t.in.Image.Entrypoint
		if len(command) == 1 && command[0] == "" {
			command = nil // a Dockerfile's ENTRYPOINT [""] clears the entrypoint of its base image
		}
		if len(args) == 0 {
			args = t.in.Image.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 {
		return nil, invalid("command",
			"there is nothing to run: neither the container's configuration nor the image names a command")
	}
	return all, nil
}

// cwd returns the working directory. A requested one that is not absolute is for the OCI runtime to
// report, as for args.
func (t *translation) cwd() (string, error) {
	if dir := t.in.Container.GetWorkingDir(); path.IsAbs(dir) {
		return path.Clean(dir), nil
	} else if dir != "" {
		return dir, nil
	}
	dir := t.in.Image.WorkingDir
	if dir != "" && !path.IsAbs(dir) {
		t.note("the image's working directory %.100q is relative: it is taken from /", dir)
	}
	return absolute("the image's working directory", path.Join("/", dir))
}

// env merges the variables of the runtime, the image and the container's configuration. A later one
// replaces an earlier one at its place.
func (t *translation) env() ([]string, error) {
	e := environment{at: make(map[string]int)}
	e.set("PATH", defaultPath)
	if t.in.Container.GetTty() {
		e.set("TERM", "xterm")
	}
	hostname := t.in.Pod.GetHostname()
	if hostname == "" {
		hostname = t.in.Node.Hostname
	}
	e.set("HOSTNAME", hostname)
	t.imageEnv(&e)
	if err := t.requestedEnv(&e); err != nil {
		return nil, err
	}
	for i, entry := range e.entries {
		if !utf8.ValidString(entry) {
			e.entries[i] = rawEnv + strconv.Itoa(i) + "=" + hex.EncodeToString([]byte(entry))
		}
	}
	return e.entries, nil
}

// requestedEnv adds the variables of the container's configuration. The program sees only where the
// first "=" is, so a name that has one ends there. Those without a name are left out, as by CRI-O.
// NUL bytes are for the OCI runtime to report, as for args.
func (t *translation) requestedEnv(e *environment) error {
	nameless := 0
	for _, kv := range t.in.Container.GetEnvs() {
		key, value := kv.GetKey(), string(kv.GetValue())
		if name, rest, ok := strings.Cut(key, "="); ok {
			key, value = name, rest+"="+value
		}
		switch {
		case key == "":
			nameless++
			continue
		case strings.HasPrefix(key, rawEnv):
			return invalid("envs", "names that begin with %s are reserved", rawEnv)
		}
		e.set(key, value)
	}
	if nameless > 0 {
		t.note("envs: ignoring %d environment variables without a name", nameless)
	}
	return nil
}

// imageEnv adds the variables of the image. Invalid entries are left out, so that the image runs as
// with other runtimes.
func (t *translation) imageEnv(e *environment) {
	var bad []string
	for _, kv := range t.in.Image.Env {
		key, value, ok := strings.Cut(kv, "=")
		if !ok || key == "" || strings.ContainsRune(kv, 0) || strings.HasPrefix(key, rawEnv) {
			bad = append(bad, kv)
			continue
		}
		e.set(key, value)
	}
	if len(bad) > 0 {
		t.note("ignoring entries of the image's environment that are not NAME=value: %s", some(bad))
	}
}

// some quotes the first few strings of an image for the log, each shortened.
func some(all []string) string {
	const most = 5
	var b strings.Builder
	for i, one := range all {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(all)-most)
			break
		}
		fmt.Fprintf(&b, " %.100q", one)
	}
	return strings.TrimPrefix(b.String(), " ")
}

// rawEnv is the name prefix of encoded environment entries. The values of the CRI are bytes, which
// JSON, and therefore an OCI spec, cannot always represent. The prefix is followed by the entry's
// index, and its value is "KEY=value" in hex; the embedded OCI runtime decodes it.
const rawEnv = "_KURI_RAW_"

type environment struct {
	entries []string
	at      map[string]int // index in entries by key
}

func (e *environment) set(key, value string) {
	if i, ok := e.at[key]; ok {
		e.entries[i] = key + "=" + value
		return
	}
	e.at[key] = len(e.entries)
	e.entries = append(e.entries, key+"="+value)
}
