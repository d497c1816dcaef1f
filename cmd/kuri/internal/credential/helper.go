package credential

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

const (
	helperLimit = time.Minute // a helper may ask the user or another machine
	mostAnswer  = 1 << 20     // bytes
)

// absent is in the standard output of helpers without a matching credential. There is no exit code
// for it.
const absent = "credentials not found"

// tokenUser replaces the username if the secret is an identity token.
const tokenUser = "<token>"

// get requests a registry's credential from a helper.
func get(ctx context.Context, helper, registry string) (c Credential, found bool, err error) {
	out, err := call(ctx, helper, "get", []byte(registry))
	if err != nil {
		if bytes.Contains(bytes.ToLower(out), []byte(absent)) {
			return Credential{}, false, nil
		}
		return Credential{}, false, err
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out, &answer); err != nil {
		return Credential{}, false,
			fmt.Errorf("docker-credential-%s get: its answer is not what a credential helper says: %w", helper, err)
	}
	if answer.Username == tokenUser {
		return Credential{IdentityToken: answer.Secret}, true, nil
	}
	return Credential{Username: answer.Username, Password: answer.Secret}, answer.Username != "", nil
}

// store stores a credential in a helper.
func store(ctx context.Context, helper, registry string, c Credential) error {
	said := struct{ ServerURL, Username, Secret string }{registry, c.Username, c.Password}
	if c.IdentityToken != "" {
		said.Username, said.Secret = tokenUser, c.IdentityToken
	}
	in, err := json.Marshal(said)
	if err != nil {
		return err
	}
	_, err = call(ctx, helper, "store", in)
	return err
}

func erase(ctx context.Context, helper, registry string) error {
	_, err := call(ctx, helper, "erase", []byte(registry))
	return err
}

// call runs a helper with one of its verbs. It also returns the output with an error.
func call(ctx context.Context, helper, verb string, in []byte) ([]byte, error) {
	name := "docker-credential-" + helper
	if strings.ContainsRune(helper, '/') {
		return nil, fmt.Errorf("the credential helper %q: expected a name, without a path", helper)
	}
	ctx, cancel := context.WithTimeout(ctx, helperLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, verb)
	cmd.WaitDelay = time.Second // for a child of the helper that holds the pipe
	out, errs := &bounded{}, &bounded{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), out, errs
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, fmt.Errorf("the credential helper %s is not in PATH", name)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s %s: %w", name, verb, ctx.Err())
	case err != nil:
		return out.kept.Bytes(), fmt.Errorf("%s %s: %w: %s", name, verb, err, firstLine(errs.kept.Bytes(), out.kept.Bytes()))
	}
	return out.kept.Bytes(), nil
}

// firstLine returns the first line of the first text that is not blank.
func firstLine(texts ...[]byte) string {
	for _, t := range texts {
		if line, _, _ := strings.Cut(strings.TrimSpace(string(t)), "\n"); line != "" {
			return line
		}
	}
	return "it says nothing"
}

// bounded is a buffer with a maximum size. (The bytes.Buffer is not embedded, because its ReadFrom
// has no limit.)
type bounded struct{ kept bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.kept.Len()+len(p) > mostAnswer {
		return 0, errors.New("it says more than a credential helper does")
	}
	return b.kept.Write(p)
}
