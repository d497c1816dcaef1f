package verifier

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// MaxPrograms is the maximum number of programs: each adds its run time to every pull.
const MaxPrograms = 10

// Options configure the programs.
type Options struct {
	Dir     string        // directory of the programs
	Timeout time.Duration // for each program
	Scratch string        // existing directory, best on a tmpfs, for the credentials shown to programs
}

// Programs are the verifiers in one directory. See [New].
type Programs struct{ Options }

// Refusal is the error for an image that was not accepted.
type Refusal struct {
	Program string // the program that refused; "" if no program could be run
	Reason  string // one line
}

func (r *Refusal) Error() string {
	if r.Program == "" {
		return r.Reason
	}
	return fmt.Sprintf("verifier %s: %s", r.Program, r.Reason)
}

// New returns the programs of o.Dir and removes scratch directories left by a killed daemon.
func New(o Options) *Programs {
	left, _ := filepath.Glob(filepath.Join(o.Scratch, scratchName+"*"))
	for _, dir := range left {
		os.RemoveAll(dir)
	}
	return &Programs{o}
}

// Image is the image to verify.
type Image struct {
	Reference  string               // fully qualified
	Descriptor imagespec.Descriptor // of the manifest or index that the reference resolves to
	Auth       []byte               // credentials of the pull, as a docker config.json; nil: anonymous
}

// Judge runs the programs. It returns nil if all accept the image, a [*Refusal] if not, and another
// error if ctx ends or the input of the programs cannot be prepared.
func (p *Programs) Judge(ctx context.Context, img Image) error {
	// 1. List the programs: the directory may have changed.
	programs, err := p.list()
	if err != nil {
		return err
	}

	// 2. Prepare their input.
	stdin, err := json.Marshal(img.Descriptor)
	if err != nil {
		return fmt.Errorf("descriptor for the image verifiers: %w", err)
	}
	env, remove, err := p.environment(img.Auth)
	if err != nil {
		return fmt.Errorf("credentials for the image verifiers: %w", err)
	}
	defer remove()

	// 3. Run one after the other; the first refusal decides.
	args := []string{"-name", img.Reference, "-digest", img.Descriptor.Digest.String(), "-stdin-media-type",
		imagespec.MediaTypeDescriptor}
	for _, name := range programs {
		reason, err := p.run(ctx, call{name: name, args: args, stdin: append(stdin, '\n'), env: env})
		if err != nil {
			return err
		}
		slog.Debug("an image is accepted", "image", img.Reference, "digest", img.Descriptor.Digest, "verifier", name,
			"reason", reason)
	}
	return nil
}

// list returns the names of the programs, sorted.
func (p *Programs) list() ([]string, error) {
	files, err := os.ReadDir(p.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Refusal{Reason: fmt.Sprintf("the directory of image verifiers %s is configured but not there: "+
			"put the programs there, or take image.verifier_dir out of the configuration", p.Dir)}
	case err != nil:
		return nil, &Refusal{Reason: fmt.Sprintf("the directory of image verifiers cannot be read: %v", err)}
	case len(files) == 0:
		return nil, &Refusal{Reason: fmt.Sprintf("the directory of image verifiers %s is empty: put a program there, "+
			"or take image.verifier_dir out of the configuration", p.Dir)}
	case len(files) > MaxPrograms:
		return nil, &Refusal{Reason: fmt.Sprintf("the directory of image verifiers %s has %d files, more than the %d "+
			"that are asked: leave in it only what is to be asked", p.Dir, len(files), MaxPrograms)}
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names, nil
}

// scratchName is the name prefix of directories below Options.Scratch.
const scratchName = "verify-"

// environment returns the environment of the programs: that of kurid (proxies, paths), with
// DOCKER_CONFIG if there are credentials.
func (p *Programs) environment(auth []byte) (env []string, remove func(), err error) {
	env = os.Environ()
	if auth == nil {
		return env, func() {}, nil
	}
	dir, err := os.MkdirTemp(p.Scratch, scratchName) // mode 0700
	if err != nil {
		return nil, nil, err
	}
	remove = func() { os.RemoveAll(dir) }
	if err := os.WriteFile(filepath.Join(dir, "config.json"), auth, 0o600); err != nil {
		remove()
		return nil, nil, err
	}
	return append(env, "DOCKER_CONFIG="+dir), remove, nil
}
