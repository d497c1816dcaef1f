package pod

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
)

// copierWords is how much of the copier's error output is kept, in bytes.
const copierWords = 4 << 10

// Exit codes of the copier with a meaning of their own, see internal/oci/copy.c.
const (
	copierInPart       = 1
	copierMissing      = 3
	copierNotDirectory = 4
)

// PackFiles writes a tar of name, an entry of the directory dir in a running container. Error kinds: Incomplete (a part
// could not be read, and the rest was written), NotFound (dir or name does not exist), Precondition (a file instead of
// a directory, or the container does not run), Unimplemented (there is no copier).
func (p *Pods) PackFiles(ctx context.Context, id, dir, name string, to io.Writer) error {
	return p.copyFiles(ctx, id, keeper.Streams{Stdout: to}, "pack", dir, name)
}

// UnpackFiles extracts a tar (GNU format) below a directory of a running container. Its errors are those of PackFiles.
func (p *Pods) UnpackFiles(ctx context.Context, id, dir string, from io.Reader) error {
	return p.copyFiles(ctx, id, keeper.Streams{Stdin: from}, "unpack", dir)
}

// IsDirectory reports whether a path in a running container is a directory, or a link to one.
func (p *Pods) IsDirectory(ctx context.Context, id, path string) (bool, error) {
	code, _, err := p.copier(ctx, id, keeper.Streams{}, "isdir", path)
	if err == nil && code > 1 {
		err = fmt.Errorf("the copier ended with exit code %d", code)
	}
	return code == 0, err
}

func (p *Pods) copyFiles(ctx context.Context, id string, with keeper.Streams, args ...string) error {
	code, said, err := p.copier(ctx, id, with, args...)
	switch {
	case err != nil:
		return err
	case code == copierMissing:
		return fault.New(fault.NotFound, "%s", said)
	case code == copierNotDirectory:
		return fault.New(fault.Precondition, "%s", said)
	case code == copierInPart:
		return fault.New(fault.Incomplete, "%s", said)
	case code != 0 && said == "":
		return fmt.Errorf("the copier ended with exit code %d", code)
	case code != 0:
		return fmt.Errorf("%s", said)
	}
	return nil
}

// copier runs the copier as a process of a container. It returns the exit code and the error output, as one line.
func (p *Pods) copier(ctx context.Context, id string, with keeper.Streams, args ...string) (code int32, said string, err error) {
	for _, a := range args {
		if a == "" {
			return 0, "", fault.New(fault.Invalid, "a path is empty")
		}
	}
	c, err := p.running(id)
	if err != nil {
		return 0, "", err
	}
	words := &boundedBuffer{left: copierWords}
	with.Stderr = words
	if with.Stdout == nil {
		with.Stdout = io.Discard
	}
	code, err = p.Keeper.Copy(ctx, c.Record().ID, args, with)
	if err != nil {
		return 0, "", fmt.Errorf("copy files of %s: %w", c.Record().name(), err)
	}
	return code, strings.Join(strings.Split(strings.TrimSpace(words.kept.String()), "\n"), "; "), nil
}

// boundedBuffer keeps the first bytes that are written to it and drops the rest. (It must not embed the buffer: io.Copy would
// use the buffer's ReadFrom, which keeps everything.)
type boundedBuffer struct {
	kept bytes.Buffer
	left int
}

func (l *boundedBuffer) Write(b []byte) (int, error) {
	kept := b[:min(len(b), l.left)]
	l.left -= len(kept)
	l.kept.Write(kept)
	return len(b), nil
}
