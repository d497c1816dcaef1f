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

// defaultPath is the PATH of a container whose image and configuration set none.
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

// args follows Kubernetes: a command replaces the image's entrypoint and its cmd; args replace the cmd alone.
func (t *translation) args() ([]string, error) {
	command, args := t.in.Container.GetCommand(), t.in.Container.GetArgs()
	if len(command) == 0 {
		command = t.in.Image.Entrypoint
		if len(command) == 1 && command[0] == "" {
			command = nil // how a Dockerfile's ENTRYPOINT [""] takes the entrypoint of its base image away
		}
		if len(args) == 0 {
			args = t.in.Image.Cmd
		}
	}
	all := slices.Concat(command, args)
	switch {
	case len(all) == 0:
		return nil, invalid("command", "there is nothing to run: neither the container's configuration nor the image names a command")
	case all[0] == "":
		return nil, invalid("command", "the name of the program is empty")
	}
	for _, a := range all {
		if strings.ContainsRune(a, 0) {
			return nil, invalid("command", "%q contains a NUL byte, which no program can be given", a)
		}
	}
	return all, nil
}

func (t *translation) cwd() (string, error) {
	if dir := t.in.Container.GetWorkingDir(); dir != "" {
		return absolute("working_dir", dir)
	}
	dir := t.in.Image.WorkingDir
	if dir != "" && !path.IsAbs(dir) {
		t.note("the image's working directory %.100q is relative: it is taken from /", dir)
	}
	return absolute("the image's working directory", path.Join("/", dir))
}

// env is what the runtime sets, then what the image sets, then what the container's configuration sets; the later wins
// and keeps the place of the earlier.
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
	for _, kv := range t.in.Container.GetEnvs() {
		key, value := kv.GetKey(), string(kv.GetValue())
		switch {
		case key == "":
			return nil, invalid("envs", "an environment variable has no name")
		case strings.ContainsAny(key, "=\x00"):
			return nil, invalid("envs", "the name %q contains \"=\" or a NUL byte", key)
		case strings.ContainsRune(value, 0):
			return nil, invalid("envs", "the value of %s contains a NUL byte, which no program can be given", key)
		case strings.HasPrefix(key, rawEnv):
			return nil, invalid("envs", "names that begin with %s are Kuri's own", rawEnv)
		}
		e.set(key, value)
	}
	for i, entry := range e.entries {
		if !utf8.ValidString(entry) {
			e.entries[i] = rawEnv + strconv.Itoa(i) + "=" + hex.EncodeToString([]byte(entry))
		}
	}
	return e.entries, nil
}

// imageEnv sets the variables of the image. Entries that no environment can have are left out, so that the image runs as it
// does elsewhere.
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
		t.note("the image's environment has entries that are not NAME=value and are left out: %s", some(bad))
	}
}

// some quotes the first of what an image says, and of each no more than a line of the log can have.
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

// rawEnv begins the names of environment entries that JSON, and so an OCI spec, cannot carry: the values of the CRI are
// bytes. Their number follows, and the entry "KEY=value" in hex; the embedded OCI runtime decodes them.
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
