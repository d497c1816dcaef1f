package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func SaveCommand(c *cli.CLI) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "save [-o PATH] IMAGE...",
		Short: "Write images as an OCI image layout, which kuri load and other tools read",
		Long: `Write images as an OCI image layout: the tar of one into a file or to standard output, or, where PATH ends in / or is an
empty directory, a directory. It is a docker-archive too. The image keeps its ID, and kuri load gives it the tags and digests
that it had: saved by a tag that tag and its digests, by its ID all its names.
This needs Kuri's own runtime.`,
		Args:              cli.SomeNames(1),
		ValidArgsFunction: c.CompleteImages(cli.AnyNumber),
		RunE:              func(cmd *cobra.Command, args []string) error { return save(cmd.Context(), c, to, args) },
	}
	cmd.Flags().StringVarP(&to, "output", "o", "-", "file or directory; - for standard output")
	return cmd
}

func save(ctx context.Context, c *cli.CLI, to string, images []string) error {
	target, err := openTarget(c, to)
	if err != nil {
		return err
	}
	defer target.abandon()
	img, err := c.Images(ctx)
	if err != nil {
		return err
	}
	defer img.Close()
	refs := make([]string, len(images))
	for i, name := range images {
		if refs[i], err = imageArg(ctx, img, name); err != nil {
			return err
		}
	}
	stream, err := img.Kuri.Save(ctx, &kuriv1.SaveRequest{Images: refs})
	if err != nil {
		return cli.NeedsKuri(img, "saving images", err)
	}
	in := &savedTar{stream: stream}
	if err := target.fill(in); err != nil {
		switch {
		case status.Code(in.err) == codes.Unimplemented:
			return cli.NeedsKuri(img, "saving images", in.err)
		case in.err != nil:
			return in.err // the cause reported by the runtime, not the failure of its reader
		}
		return fmt.Errorf("save to %s: %w", to, err)
	}
	fmt.Fprintf(c.Err, "saved %s: %s\n", cli.Printable(strings.Join(images, ", ")), cli.Size(uint64(in.read)))
	return nil
}

// savedTar reads the tar that the runtime sends.
type savedTar struct {
	stream grpc.ServerStreamingClient[kuriv1.SaveChunk]
	left   []byte
	read   int64
	err    error // of the stream; nil at its end
}

func (s *savedTar) Read(p []byte) (int, error) {
	for len(s.left) == 0 {
		chunk, err := s.stream.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				s.err = err
			}
			return 0, err
		}
		s.left = chunk.GetData()
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	s.read += int64(n)
	return n, nil
}

// saveTarget is the destination of a layout. Under its final name it is complete or absent.
type saveTarget interface {
	fill(from io.Reader) error
	abandon() // removes an incomplete target; does nothing after fill has succeeded
}

func openTarget(c *cli.CLI, to string) (saveTarget, error) {
	if to == "-" {
		if f, ok := c.Out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return nil, cli.Usagef("an archive is binary and not written to a terminal: use -o FILE or a pipe")
		}
		return outStream{c.Out}, nil
	}
	at := filepath.Clean(to)
	info, err := os.Stat(at)
	isDir := err == nil && info.IsDir()
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	case !isDir && !strings.HasSuffix(to, "/"):
		if err == nil && !info.Mode().IsRegular() {
			return outFile(at) // an existing device or pipe
		}
		return newTargetFile(at)
	case err == nil && !isDir:
		return nil, fmt.Errorf("%s is not a directory", at)
	case isDir:
		if entries, err := os.ReadDir(at); err != nil || len(entries) > 0 {
			return nil, errors.Join(err, fmt.Errorf("the directory %s is not empty: name a new one", at))
		}
	}
	return newTargetDir(at)
}

type outStream struct{ w io.Writer }

func (o outStream) abandon() {}
func (o outStream) fill(from io.Reader) error {
	_, err := io.Copy(o.w, from)
	return err
}

func outFile(at string) (saveTarget, error) {
	f, err := os.OpenFile(at, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	return outStream{f}, nil // closed with the program
}

// unplaced returns the error for a temporary file beside at. It names at, which the user knows.
func unplaced(at string, err error) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err
	}
	return fmt.Errorf("write %s: %w", at, err)
}

// umask returns the file mode bits that the user masks. Temporary files are created with fewer bits
// than remain.
func umask() os.FileMode {
	mask := syscall.Umask(0o077)
	syscall.Umask(mask)
	return os.FileMode(mask & 0o777)
}

// targetFile is written under a temporary name and renamed.
type targetFile struct {
	at  string
	tmp *os.File
}

func newTargetFile(at string) (*targetFile, error) {
	tmp, err := os.CreateTemp(filepath.Dir(at), "."+filepath.Base(at)+".*")
	if err != nil {
		return nil, unplaced(at, err)
	}
	return &targetFile{at, tmp}, nil
}

func (t *targetFile) fill(from io.Reader) error {
	if _, err := io.Copy(t.tmp, from); err != nil {
		return err
	}
	if err := t.tmp.Chmod(0o666 &^ umask()); err != nil {
		return err
	}
	if err := t.tmp.Sync(); err != nil {
		return err
	}
	if err := t.tmp.Close(); err != nil {
		return err
	}
	return os.Rename(t.tmp.Name(), t.at)
}

func (t *targetFile) abandon() {
	t.tmp.Close()
	os.Remove(t.tmp.Name())
}

// targetDir is a directory that is filled under a temporary name and renamed.
type targetDir struct{ at, tmp string }

func newTargetDir(at string) (*targetDir, error) {
	tmp, err := os.MkdirTemp(filepath.Dir(at), "."+filepath.Base(at)+".*")
	if err != nil {
		return nil, unplaced(at, err)
	}
	return &targetDir{at, tmp}, nil
}

func (t *targetDir) abandon() { os.RemoveAll(t.tmp) }

// fill unpacks the layout's tar, which has only regular files.
func (t *targetDir) fill(from io.Reader) error {
	root, err := os.OpenRoot(t.tmp) // no name can lead out of it
	if err != nil {
		return err
	}
	defer root.Close()
	for r := tar.NewReader(from); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			return fmt.Errorf("%q of the layout is not a regular file", h.Name)
		}
		if err := writeBelow(root, path.Clean(h.Name), r); err != nil {
			return err
		}
	}
	if err := os.Chmod(t.tmp, 0o777&^umask()); err != nil {
		return err
	}
	return os.Rename(t.tmp, t.at) // also replaces an empty directory
}

// writeBelow creates a new file below root with its parent directories.
func writeBelow(root *os.Root, name string, from io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, from); err != nil {
		return err
	}
	return f.Close()
}
