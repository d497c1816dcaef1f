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

// MaxPrograms is how many programs may be in the directory: each takes its time at every pull.
const MaxPrograms = 10

// Options say which programs are asked.
type Options struct {
	Dir     string        // of the programs
	Timeout time.Duration // of each
	Scratch string        // directory that is there, below which credentials are shown to programs; best on a tmpfs
}

// Programs are those of one directory. See [New].
type Programs struct{ Options }

// Refusal is the error of an image that was not accepted.
type Refusal struct {
	Program string // that refused it; "" when none could be asked
	Reason  string // one line
}

func (r *Refusal) Error() string {
	if r.Program == "" {
		return r.Reason
	}
	return fmt.Sprintf("verifier %s: %s", r.Program, r.Reason)
}

// New prepares to ask the programs, and removes what a daemon before has left.
func New(o Options) *Programs {
	left, _ := filepath.Glob(filepath.Join(o.Scratch, scratchName+"*"))
	for _, dir := range left {
		os.RemoveAll(dir)
	}
	return &Programs{o}
}

// Image is what the programs are asked about.
type Image struct {
	Reference  string               // in full
	Descriptor imagespec.Descriptor // of the manifest or index that the reference stands for
	Auth       []byte               // what the pull knows to prove itself with, as a file of docker's format; nil: nothing
}

// Judge asks the programs about the image: nil when all accept it, a [*Refusal] when it is not accepted, another error when
// ctx ends or the programs' input cannot be made.
func (p *Programs) Judge(ctx context.Context, img Image) error {
	// 1. Who is to be asked, as it is now.
	programs, err := p.list()
	if err != nil {
		return err
	}

	// 2. What they are given.
	stdin, err := json.Marshal(img.Descriptor)
	if err != nil {
		return fmt.Errorf("descriptor for the image verifiers: %w", err)
	}
	env, remove, err := p.environment(img.Auth)
	if err != nil {
		return fmt.Errorf("credentials for the image verifiers: %w", err)
	}
	defer remove()

	// 3. One after the other; the first refusal decides.
	args := []string{"-name", img.Reference, "-digest", img.Descriptor.Digest.String(), "-stdin-media-type", imagespec.MediaTypeDescriptor}
	for _, name := range programs {
		reason, err := p.run(ctx, call{name: name, args: args, stdin: append(stdin, '\n'), env: env})
		if err != nil {
			return err
		}
		slog.Debug("an image is accepted", "image", img.Reference, "digest", img.Descriptor.Digest, "verifier", name, "reason", reason)
	}
	return nil
}

// list returns the names of the programs, sorted.
func (p *Programs) list() ([]string, error) {
	files, err := os.ReadDir(p.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Refusal{Reason: fmt.Sprintf("the directory of image verifiers %s is configured but not there: put the programs there, or take image.verifier_dir out of the configuration", p.Dir)}
	case err != nil:
		return nil, &Refusal{Reason: fmt.Sprintf("the directory of image verifiers cannot be read: %v", err)}
	case len(files) == 0:
		return nil, &Refusal{Reason: fmt.Sprintf("the directory of image verifiers %s is empty: put a program there, or take image.verifier_dir out of the configuration", p.Dir)}
	case len(files) > MaxPrograms:
		return nil, &Refusal{Reason: fmt.Sprintf("the directory of image verifiers %s has %d files, more than the %d that are asked: leave in it only what is to be asked", p.Dir, len(files), MaxPrograms)}
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
	}
	return names, nil
}

// scratchName begins the names of the directories that are made below Options.Scratch.
const scratchName = "verify-"

// environment is what the programs run with: kurid's own variables, for proxies and paths, and where the credentials are.
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
