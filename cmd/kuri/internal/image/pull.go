package image

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/login"
)

func PullCommand(c *cli.CLI) *cobra.Command {
	var creds string
	cmd := &cobra.Command{
		Use:               "pull IMAGE...",
		Short:             "Pull images",
		Args:              cli.SomeNames(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, refs []string) error {
			ctx := cmd.Context()
			given, err := credentials(ctx, c, creds)
			if err != nil {
				return err
			}
			img, err := c.Images(ctx)
			if err != nil {
				return err
			}
			defer img.Close()
			var pulled []any
			for _, ref := range refs {
				auth := given
				if auth == nil {
					auth = login.AuthFor(ctx, c, ref)
				}
				r, err := Pull(ctx, c, img, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
				if err != nil {
					return err
				}
				if c.Tabular() {
					fmt.Fprintln(c.Out, r.ImageRef)
				}
				pulled = append(pulled, r)
			}
			return c.Print(pulled, func() error { return nil })
		},
	}
	cmd.Flags().StringVar(&creds, "creds", "",
		"USER:PASSWORD for the registry; - reads it from standard input, where others cannot see it (default: what kuri login keeps)")
	login.AuthFileFlag(c, cmd)
	c.FormatFlag(cmd)
	return cmd
}

// credentials reads the value of --creds.
func credentials(ctx context.Context, c *cli.CLI, s string) (*runtimeapi.AuthConfig, error) {
	if s == "" {
		return nil, nil
	}
	if s == "-" {
		const most = 64 << 10
		raw, err := io.ReadAll(io.LimitReader(c.Input(ctx), most))
		if err != nil {
			return nil, fmt.Errorf("read the credentials: %w", err)
		}
		s = strings.TrimRight(string(raw), "\r\n")
	}
	user, password, ok := strings.Cut(s, ":")
	if !ok {
		return nil, cli.Usagef("--creds: expected USER:PASSWORD")
	}
	return &runtimeapi.AuthConfig{Username: user, Password: password}, nil
}

// Pull pulls an image and shows the progress on standard error.
func Pull(ctx context.Context, c *cli.CLI, img *client.Images,
	req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := req.Image.Image
	p := newProgress(c, ref)
	watching, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.watch(watching, img)
	}()
	r, err := img.PullImage(ctx, req)
	stop()
	<-ended
	if named, perr := reference.ParseNormalizedNamed(ref); perr == nil && status.Code(err) == codes.Unauthenticated {
		err = fmt.Errorf("%w\nkuri login %s keeps credentials for kuri pull and kuri run", err, reference.Domain(named))
	}
	if err != nil && strings.Contains(err.Error(), ref) {
		return nil, err // the runtime's message names the image
	}
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	if p.how == progressJSON {
		return r, nil
	}
	fmt.Fprintf(c.Err, "pulled %s in %.1fs\n", cli.Printable(ref), time.Since(p.began).Seconds())
	return r, nil
}
