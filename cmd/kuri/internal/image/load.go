package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// loadChunk is the size of an archive's part in one message, in bytes. The service accepts up to 1 MiB.
const loadChunk = 512 << 10

func LoadCommand(c *cli.CLI) *cobra.Command {
	var name, input string
	cmd := &cobra.Command{
		Use:   "load PATH",
		Short: "Load images from an archive or a directory",
		Long: `Load the images of an archive: a tar of an OCI image layout or of "docker save", plain or packed with gzip, zstd, xz or bzip2, an
OCI image layout as a directory, or - for an archive on standard input. This needs Kuri's own runtime.`,
		Example: `  kuri load web.tar
  docker save web:1 | kuri load -
  kuri load --name registry.example/web:1 ./layout`,
		Args: func(cmd *cobra.Command, args []string) error {
			if input != "" {
				return cli.RangeArgs(0, 0)(cmd, args)
			}
			return cli.RangeArgs(1, 1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			if input != "" {
				args = []string{input}
			}
			archive, err := archive(ctx, c, args[0])
			if err != nil {
				return err
			}
			defer archive.Close()
			img, err := c.Images(ctx)
			if err != nil {
				return err
			}
			defer img.Close()
			before, err := img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
			if err != nil {
				return fmt.Errorf("list images: %w", err)
			}
			loaded, err := send(ctx, img, archive, name)
			if cli.NotServed(err) {
				return fmt.Errorf("%s is not Kuri's runtime, and the CRI itself cannot load archives: use the runtime's own tool",
					img.Endpoint())
			}
			if err != nil {
				return fmt.Errorf("load %s: %w", args[0], err)
			}
			if name != "" && !slices.ContainsFunc(loaded.Images, func(i *kuriv1.LoadedImage) bool { return named(i, name) }) {
				fmt.Fprintf(c.Err, "kuri: the archive names its images itself; --name %s was not used\n", cli.Printable(name))
			}
			for _, i := range loaded.Images {
				for _, warning := range i.Warnings {
					fmt.Fprintf(c.Err, "kuri: warning: %s: %s\n",
						cli.Printable(strings.Join(append(slices.Clone(i.References), i.Id), ", ")), cli.Printable(warning))
				}
			}
			return c.Print(loaded, func() error {
				for _, line := range loadLines(loaded.Images, before.Images) {
					fmt.Fprintln(c.Out, line)
				}
				return nil
			})
		},
	}
	c.FreeShortFlags(cmd)
	cmd.Flags().StringVarP(&input, "input", "i", "", "`PATH` of the archive, as in docker load -i")
	cmd.Flags().StringVar(&name, "name", "",
		"`NAME` for an image that the archive does not name; a repository, for the tags that it gives")
	c.FormatFlag(cmd)
	return cmd
}

// loadLines describes the result of a load: names that are new, names that have moved, and images that were present.
func loadLines(loaded []*kuriv1.LoadedImage, before []*runtimeapi.Image) []string {
	owner, was := map[string]string{}, map[string]bool{}
	for _, i := range before {
		was[i.Id] = true
		for _, tag := range i.RepoTags {
			owner[tag] = i.Id
		}
	}
	var lines []string
	for _, i := range loaded {
		var fresh, old []string
		for _, ref := range i.References {
			switch owner[ref] {
			case i.Id:
				old = append(old, ref)
			case "":
				fresh = append(fresh, fmt.Sprintf("loaded %s %s", ref, i.Id))
			default:
				fresh = append(fresh, fmt.Sprintf("loaded %s %s (until now the name of %s)", ref, i.Id,
					cli.TrimID(owner[ref], false)))
			}
		}
		switch {
		case len(fresh) == 0 && len(old) == 0 && was[i.Id]:
			fresh = []string{fmt.Sprintf("was here already: %s, without a name", i.Id)}
		case len(fresh) == 0 && len(old) == 0:
			fresh = []string{fmt.Sprintf("loaded %s, without a name: kuri load --name gives it one", i.Id)}
		case len(fresh) == 0:
			fresh = []string{fmt.Sprintf("was here already: %s %s", strings.Join(old, ", "), i.Id)}
		case len(old) > 0:
			fresh = append(fresh, fmt.Sprintf("  which was here already as %s", strings.Join(old, ", ")))
		}
		lines = append(lines, fresh...)
	}
	for i := range lines {
		lines[i] = cli.Printable(lines[i])
	}
	return lines
}

// named reports whether an image was loaded under name. A name without a tag stands for all tags of
// its repository.
func named(i *kuriv1.LoadedImage, name string) bool {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(i.References, func(have string) bool {
		return have == ref.String() || reference.IsNameOnly(ref) && strings.HasPrefix(have, ref.Name()+":")
	})
}

// archive opens the archive to load.
func archive(ctx context.Context, c *cli.CLI, path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(c.Input(ctx)), nil
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.NotFound("%w", err)
	}
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.IsDir() {
		return file, nil
	}
	file.Close()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(path, "oci-layout")); err != nil {
		return nil, fmt.Errorf("%s is a directory without an oci-layout file: expected an OCI image layout", path)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(pack(w, path)) }()
	return r, nil
}

// pack writes the files of an OCI image layout as a tar.
func pack(w io.Writer, dir string) error {
	root, err := os.OpenRoot(dir) // links in the layout cannot lead out of it
	if err != nil {
		return err
	}
	defer root.Close()
	tw := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := root.Stat(name) // opening a FIFO would wait for a writer
		if err != nil && d.Type() == fs.ModeSymlink {
			return fmt.Errorf("%s is a symlink that leads nowhere or out of the directory: copy the directory with cp -rL",
				filepath.Join(dir, name))
		}
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a regular file", filepath.Join(dir, name))
		}
		file, err := root.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		if info, err = file.Stat(); err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: 0o644}); err != nil {
			return err
		}
		_, err = io.Copy(tw, file)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// send streams an archive to the runtime.
func send(ctx context.Context, img *client.Images, archive io.Reader, name string) (*kuriv1.LoadResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream if the archive cannot be read
	stream, err := img.Kuri.Load(ctx)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, loadChunk)
	for first := true; ; first = false {
		n, err := io.ReadFull(archive, buf)
		if n > 0 || first {
			msg := &kuriv1.LoadChunk{Data: buf[:n]}
			if first {
				msg.Name = name
			}
			if stream.Send(msg) != nil {
				break // CloseAndRecv returns the reason
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return stream.CloseAndRecv()
}
