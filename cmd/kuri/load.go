package main

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

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
)

// loadChunk is how much of an archive one message carries, in bytes; the service takes up to 1 MiB.
const loadChunk = 512 << 10

func (c *cli) loadCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "load PATH",
		Short: "Load images from an archive, so that no registry is needed",
		Long: `Load the images of an archive: a tar of an OCI image layout or of "docker save", plain or packed with gzip, zstd, xz or bzip2, an
OCI image layout as a directory, or - for an archive on standard input. This needs Kuri's own runtime.`,
		Args: takes(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			archive, err := c.archive(args[0])
			if err != nil {
				return err
			}
			defer archive.Close()
			img, err := c.images(ctx)
			if err != nil {
				return err
			}
			defer img.Close()
			loaded, err := send(ctx, img, archive, name)
			if status.Code(err) == codes.Unimplemented {
				return fmt.Errorf("%s is not Kuri's runtime, and the CRI itself cannot load archives: use the runtime's own tool", img.Endpoint())
			}
			if err != nil {
				return fmt.Errorf("load %s: %w", args[0], err)
			}
			if name != "" && !slices.ContainsFunc(loaded.Images, func(i *kuriv1.LoadedImage) bool { return named(i, name) }) {
				fmt.Fprintf(c.err, "kuri: the archive names its images itself; --name %s was not used\n", printable(name))
			}
			return c.print(loaded, func() error {
				for _, i := range loaded.Images {
					if len(i.References) == 0 {
						fmt.Fprintln(c.out, "loaded", i.Id)
					}
					for _, ref := range i.References {
						fmt.Fprintln(c.out, "loaded", ref, i.Id)
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name for an image that the archive does not name")
	c.formatFlag(cmd)
	return cmd
}

// named tells whether an image has come by a name.
func named(i *kuriv1.LoadedImage, name string) bool {
	ref, err := reference.ParseDockerRef(name)
	return err == nil && slices.Contains(i.References, ref.String())
}

// archive opens what is to be loaded.
func (c *cli) archive(path string) (io.ReadCloser, error) {
	if path == "-" {
		return io.NopCloser(c.in), nil
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, notFoundError{err}
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
	root, err := os.OpenRoot(dir) // a link in the layout does not lead out of it
	if err != nil {
		return err
	}
	defer root.Close()
	tw := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		file, err := root.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is not a regular file", filepath.Join(dir, name))
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
	defer cancel() // ends the stream when the archive cannot be read
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
				break // CloseAndRecv says why
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
