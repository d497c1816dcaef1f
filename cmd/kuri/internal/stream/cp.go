package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/tree"
)

func CopyCommand(c *cli.CLI) *cobra.Command {
	var owner, useTar bool
	cmd := &cobra.Command{
		Use:   "cp CONTAINER:PATH LOCAL | LOCAL CONTAINER:PATH",
		Short: "Copy files and directories out of a running container, or into it",
		Long: `Copy a file or a directory out of a running container, or into it. Where the target is a directory the copy goes below it,
else it gets the target's name; a source that ends in /. means what is in the directory. LOCAL may be -, for a tar. A local
name with a colon is written ./so:

On Kuri's own runtime nothing is needed of the image. On others, and where --tar says so, the container's own tar does the work
there. In both cases it is a process of the container, as its own user. What comes out is made new below the target and nowhere else, whatever the container sends: without owners, setuid bits and
devices.`,
		Args:              cli.RangeArgs(2, 2),
		ValidArgsFunction: completePlaces(c),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to := parsePlace(args[0]), parsePlace(args[1])
			switch {
			case from.container == "" && to.container == "":
				return cli.Usagef("neither of the two is in a container: write CONTAINER:PATH")
			case from.container != "" && to.container != "":
				return cli.Usagef("both are in containers: copy to a local place first")
			case from.path == "" || to.path == "":
				return cli.Usagef("which path? CONTAINER:PATH")
			}
			return cp(cmd.Context(), c, from, to, owner, useTar)
		},
	}
	cmd.Flags().BoolVar(&useTar, "tar", false, "have the container's own tar do the work, also on Kuri's runtime")
	cmd.Flags().BoolVarP(&owner, "archive", "a", false,
		"into a container: keep the numbers of owner and group; else it is root's")
	return cmd
}

// completePlaces completes the names of containers with a colon. The shell completes local paths.
func completePlaces(c *cli.CLI) cli.Completion {
	containers := c.CompleteContainers(2)
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		names, _ := containers(cmd, args, prefix)
		for i := range names {
			names[i] += ":"
		}
		return names, cobra.ShellCompDirectiveNoSpace
	}
}

// place is one side of a copy.
type place struct {
	container string // "" for this machine
	path      string
}

// parsePlace splits NAME:PATH, where NAME may be id:PREFIX. A text that begins like a path, /… or
// ./…, is local.
func parsePlace(s string) place {
	name, p, ok := strings.Cut(s, ":")
	if id, rest, more := strings.Cut(p, ":"); more && name+":" == cli.IDPrefix && id != "" && !strings.Contains(id, "/") {
		name, p = cli.IDPrefix+id, rest
	}
	if !ok || name == "" || strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") {
		return place{path: s}
	}
	return place{container: name, path: p}
}

func cp(ctx context.Context, c *cli.CLI, from, to place, owner, useTar bool) error {
	rt, err := c.Runtime(ctx)
	if err != nil {
		return err
	}
	defer rt.Close()
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return err
	}
	ct, err := c.FindRunning(have, from.container+to.container)
	if err != nil {
		return err
	}
	b := box{CLI: c, rt: rt, id: ct.Id, name: from.container + to.container, left: new(atomic.Int64)}
	if !useTar {
		if b.files, err = b.hasFiles(ctx); err != nil {
			return err
		}
	}
	switch {
	case to.path == "-" && to.container == "":
		if f, ok := c.Out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return cli.Usagef("a tar is not for a terminal")
		}
		return b.pack(ctx, from.path, c.Out)
	case from.path == "-" && from.container == "":
		return b.send(ctx, "the tar", to.path,
			func(ctx context.Context, w io.Writer) error { return tree.Again(ctx, w, c.Input(ctx), b.leftOut) })
	case from.container != "":
		return b.out(ctx, from.path, to.path)
	}
	return b.in(ctx, from.path, to.path, owner)
}

// box is a container in a copy.
type box struct {
	*cli.CLI
	rt    *client.Runtime
	id    string
	name  string
	files bool // the runtime implements kuri.v1.Files for it
	left  *atomic.Int64
}

// hasFiles reports whether the runtime itself copies files of the container.
func (b box) hasFiles(ctx context.Context) (bool, error) {
	_, err := b.rt.Files.IsDirectory(ctx, &kuriv1.IsDirectoryRequest{ContainerId: b.id, Path: "/"})
	if status.Code(err) == codes.Unimplemented {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("copy files of %s: %w", b.name, err)
	}
	return true, nil
}

// split returns the directory from which tar packs, and the name to pack there. For dir/. and / the
// name is ".".
func split(p string) (dir, base string) {
	clean := path.Clean(p)
	if strings.HasSuffix(p, "/.") || clean == "/" || clean == "." || clean == ".." || strings.HasSuffix(clean, "/..") {
		return clean, "."
	}
	return path.Dir(clean), path.Base(clean)
}

// out copies out of the container.
func (b box) out(ctx context.Context, from, to string) error {
	_, base := split(from)
	dir, name := filepath.Dir(filepath.Clean(to)), filepath.Base(filepath.Clean(to))
	info, err := os.Stat(to)
	switch {
	case err == nil && info.IsDir():
		dir, name = to, base
	case err == nil && base == ".":
		return fmt.Errorf("%s is not a directory", to)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case err != nil && base == ".":
		if err := os.Mkdir(to, 0o755); err != nil {
			return err
		}
		dir = to
	case err != nil && strings.HasSuffix(to, "/"): // only a directory may be named like this
		if isDir, err := b.isDir(ctx, path.Clean(from)); err != nil {
			return err
		} else if !isDir {
			return notADirectory(to)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := b.pack(ctx, from, w)
		w.CloseWithError(err)
		packed <- err
	}()
	files, err := tree.Unpack(ctx, r, dir, base, name, b.leftOut)
	if err == nil {
		err = padding(r)
	}
	r.CloseWithError(errors.New("not wanted any more"))
	cancel()
	sent := <-packed
	switch {
	case err != nil && errors.Is(err, sent):
		return sent
	case err != nil:
		return fmt.Errorf("copy %s:%s to %s: %w", b.name, from, to, err)
	case files == 0 && b.left.Load() > 0:
		return fmt.Errorf("%s:%s: %w", b.name, from, tree.ErrNothing)
	case files == 0:
		return cli.NotFound("%s sent nothing for %s", b.name, from)
	}
	return nil
}

// notADirectory refuses a target that is written as a directory but is not one: a file would replace it.
func notADirectory(target string) error {
	return cli.NotFound("%s is not a directory: create it first, or leave out the slash at its end", target)
}

// maxPadding bounds the bytes after the end of a tar. GNU tar pads to 10 KiB.
const maxPadding = 1 << 20

// padding reads to the end, and so detects a truncated archive.
func padding(r io.Reader) error {
	n, err := io.CopyN(io.Discard, r, maxPadding)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("what comes after the end of the tar does not end (%d bytes)", n)
	}
	return err
}

// in copies into the container.
func (b box) in(ctx context.Context, from, to string, owner bool) error {
	info, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return cli.NotFound("%w", err)
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() && !info.IsDir() {
		return fmt.Errorf("%s is %s: %w", from, tree.KindOf(info.Mode()), tree.ErrNothing)
	}
	dir, name := path.Clean(to), filepath.Base(filepath.Clean(from))
	if strings.HasSuffix(from, "/.") || name == "." || name == "/" || name == ".." {
		name = "."
	}
	isDir, err := b.isDir(ctx, to)
	if err != nil {
		return err
	}
	if !isDir {
		if strings.HasSuffix(to, "/") && !info.IsDir() {
			return notADirectory(b.name + ":" + to)
		}
		dir, name = path.Dir(dir), path.Base(dir)
	}
	return b.send(ctx, from, dir,
		func(ctx context.Context, w io.Writer) error { return tree.Pack(ctx, w, from, name, owner, b.leftOut) })
}

// send has the container unpack the output of pack in a directory.
func (b box) send(ctx context.Context, what, dir string, pack func(context.Context, io.Writer) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := pack(ctx, w)
		w.CloseWithError(err)
		packed <- err
	}()
	err := b.unpack(ctx, dir, r)
	r.CloseWithError(errors.New("the container takes no more"))
	cancel()
	select {
	case sent := <-packed:
		if sent != nil && err == nil {
			err = fmt.Errorf("read %s: %w", what, sent)
		}
	case <-time.After(time.Second): // the source of a tar may block without an error
	}
	return err
}

func (b box) leftOut(name string) {
	b.left.Add(1)
	fmt.Fprintln(b.Err, "kuri: left out, neither file nor directory nor link:", cli.Printable(name))
}

// isDir reports whether a path of the container is a directory. Without a test program, a path with
// a trailing slash is taken for one.
func (b box) isDir(ctx context.Context, p string) (bool, error) {
	if b.files {
		r, err := b.rt.Files.IsDirectory(ctx, &kuriv1.IsDirectoryRequest{ContainerId: b.id, Path: p})
		if err != nil {
			return false, fmt.Errorf("look for %s:%s: %w", b.name, p, err)
		}
		return r.Directory, nil
	}
	r, err := b.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: b.id, Cmd: []string{"test", "-d", p},
		Timeout: 30})
	if cli.ConnectionLost(err) {
		return false, err
	}
	if err != nil || r.ExitCode > 1 {
		return strings.HasSuffix(p, "/"), nil
	}
	return r.ExitCode == 0, nil
}

// pack has the container send the tar of a path.
func (b box) pack(ctx context.Context, p string, to io.Writer) error {
	dir, base := split(p)
	if b.files {
		return b.packFiles(ctx, dir, base, to)
	}
	if base != "." {
		base = "./" + base // it may begin with a dash
	}
	return b.tar(ctx, nil, to, "-C", dir, "-cf", "-", base)
}

// unpack has the container unpack a tar in a directory.
func (b box) unpack(ctx context.Context, dir string, from io.Reader) error {
	if b.files {
		return b.unpackFiles(ctx, dir, from)
	}
	return b.tar(ctx, from, io.Discard, "-C", dir, "-xf", "-")
}

// packFiles has the runtime pack the tar.
func (b box) packFiles(ctx context.Context, dir, base string, to io.Writer) error {
	stream, err := b.rt.Files.Pack(ctx, &kuriv1.PackRequest{ContainerId: b.id, Directory: dir, Name: base})
	for err == nil {
		var chunk *kuriv1.PackChunk
		if chunk, err = stream.Recv(); err == nil {
			if _, werr := to.Write(chunk.Data); werr != nil {
				return werr
			}
		}
	}
	return b.copied(ctx, "from", err)
}

// unpackFiles has the runtime unpack the tar.
func (b box) unpackFiles(ctx context.Context, dir string, from io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // without its end an incomplete tar is rejected
	stream, err := b.rt.Files.Unpack(ctx)
	if err != nil {
		return b.copied(ctx, "into", err)
	}
	chunk := &kuriv1.UnpackChunk{ContainerId: b.id, Directory: dir}
	for buf := make([]byte, 256<<10); ; chunk = new(kuriv1.UnpackChunk) {
		n, err := from.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("copy into %s: %w", b.name, err)
		}
		chunk.Data = buf[:n]
		if serr := stream.Send(chunk); serr != nil || err != nil { // the response has the error
			break
		}
	}
	_, err = stream.CloseAndRecv()
	return b.copied(ctx, "into", err)
}

// copied returns the error of the container's side.
func (b box) copied(ctx context.Context, direction string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return fmt.Errorf("copy %s %s: %w", direction, b.name, err)
}

// maxMessages bounds the kept part of tar's messages, in bytes.
const maxMessages = 4 << 10

// tar runs the container's tar.
func (b box) tar(ctx context.Context, in io.Reader, out io.Writer, args ...string) error {
	req := &runtimeapi.ExecRequest{ContainerId: b.id, Cmd: append([]string{"tar"}, args...), Stdin: in != nil,
		Stdout: true, Stderr: true}
	resp, err := b.rt.Exec(ctx, req)
	if err != nil {
		return fmt.Errorf("run tar in %s: %w", b.name, err)
	}
	said := &words{}
	err = Copy(ctx, &cli.CLI{In: in, Out: out, Err: said}, resp.Url, Options{Stdin: in != nil})
	if err == nil {
		return nil
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	why := cli.Printable(strings.Join(strings.Split(strings.TrimSpace(said.kept.String()), "\n"), "; "))
	if code, ok := errors.AsType[cli.ExitCode](err); ok {
		if code == 126 || code == 127 {
			why += " (has the image a tar? kuri cp needs it)"
		}
		return fmt.Errorf("tar in %s: %s (exit code %d)", b.name, why, code)
	}
	if strings.Contains(err.Error(), "executable file not found") || strings.Contains(err.Error(), "no such file") {
		return fmt.Errorf("run tar in %s, which kuri cp needs: %w", b.name, err)
	}
	if why != "" {
		err = fmt.Errorf("%w: %s", err, why)
	}
	return fmt.Errorf("run tar in %s: %w", b.name, err)
}

// words keeps the beginning of its input. (The buffer is not embedded: its ReadFrom has no bound.)
type words struct{ kept bytes.Buffer }

func (w *words) Write(p []byte) (int, error) {
	w.kept.Write(p[:min(len(p), max(0, maxMessages-w.kept.Len()))])
	return len(p), nil
}
