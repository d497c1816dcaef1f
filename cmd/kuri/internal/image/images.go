package image

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func ListCommand(c *cli.CLI) *cobra.Command {
	o := &cli.ListOptions{}
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List images",
		Example: `  kuri images --name nginx
  kuri images --sort size -o wide
  kuri images -o jsonpath='{.images[*].repoTags}'`,
		Args:              cli.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			img, err := c.Images(cmd.Context())
			if err != nil {
				return err
			}
			defer img.Close()
			return c.Show(cmd.Context(), o,
				func(ctx context.Context) (*cli.Listing, error) { return listImages(ctx, c, img, o) })
		},
	}
	c.FormatFlag(cmd)
	o.ListFlags(cmd, cli.ByName, cli.BySize)
	return cmd
}

func listImages(ctx context.Context, c *cli.CLI, img *client.Images, o *cli.ListOptions) (*cli.Listing, error) {
	list, err := img.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	list.Images = slices.DeleteFunc(list.Images, func(i *runtimeapi.Image) bool {
		names := append(slices.Clone(i.RepoTags), i.RepoDigests...)
		return o.Name != "" && !slices.ContainsFunc(names, o.Pattern.MatchString)
	})
	l := &cli.Listing{Data: list, Rows: func() ([][]string, error) {
		users, err := imageUsers(ctx, c)
		if err != nil { // another program may serve the image service
			fmt.Fprintln(c.Err, "kuri: what uses the images is not known:", cli.Describe(err))
		}
		rows := imageRows(list.Images, describeImages(ctx, img, list.Images), users, o.Full, c.Format == cli.FormatWide)
		if o.Sort == cli.BySize {
			bytes := map[string]uint64{}
			for _, i := range list.Images {
				bytes[cli.TrimID(i.Id, o.Full)] = i.Size
			}
			slices.SortStableFunc(rows[1:], func(a, b []string) int { return cmp.Compare(bytes[b[1]], bytes[a[1]]) })
		}
		return rows, nil
	}}
	for _, i := range list.Images {
		l.IDs = append(l.IDs, i.Id)
	}
	return l, nil
}

// describeImages returns Kuri's own information about each image by id: when it was pulled and
// whether it is in use.
func describeImages(ctx context.Context, img *client.Images,
	list []*runtimeapi.Image) map[string]*kuriv1.ImageDescription {
	told := make(map[string]*kuriv1.ImageDescription, len(list))
	for _, i := range list {
		d, err := img.Kuri.Describe(ctx, &kuriv1.DescribeRequest{Image: i.Id})
		if status.Code(err) == codes.Unimplemented {
			return nil
		}
		told[i.Id] = d // nil if it was removed meanwhile, or is damaged
	}
	return told
}

// imageUsers returns the containers that use an image, as pod/container, by every name that the
// runtime reports for their images.
func imageUsers(ctx context.Context, c *cli.CLI) (map[string][]string, error) {
	rt, err := c.Runtime(ctx)
	if err != nil {
		return nil, err
	}
	defer rt.Close()
	have, err := cli.TakeInventory(ctx, rt)
	if err != nil {
		return nil, err
	}
	return usersByImage(have), nil
}

func usersByImage(v *cli.Inventory) map[string][]string {
	users := map[string][]string{}
	for _, ct := range v.Containers {
		name := ct.GetMetadata().GetName()
		if p := v.PodOf(ct); p != nil {
			name = cli.PodName(p) + "/" + name
		}
		for _, image := range []string{ct.GetImageId(), ct.GetImageRef(), ct.GetImage().GetImage()} {
			if image != "" && !slices.Contains(users[image], name) {
				users[image] = append(users[image], name)
			}
		}
	}
	return users
}

// usersOf returns the containers that use an image, sorted.
func usersOf(i *runtimeapi.Image, users map[string][]string) []string {
	var out []string
	for _, name := range slices.Concat([]string{i.Id}, i.RepoTags, i.RepoDigests) {
		out = append(out, users[name]...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// asVolume stands for the users of an image in use that is no container's own: the CRI does not
// list its mounts.
const asVolume = "a volume"

// maxUsers is the number of an image's users in a table.
const maxUsers = 2

// imageRows returns a row for each name of each image.
func imageRows(list []*runtimeapi.Image, told map[string]*kuriv1.ImageDescription, users map[string][]string, full,
	wide bool) [][]string {
	var rows [][]string
	for _, i := range list {
		names := i.RepoTags
		if len(names) == 0 {
			names = i.RepoDigests
		}
		if len(names) == 0 {
			names = []string{""}
		}
		pinned := ""
		if i.Pinned {
			pinned = "pinned"
		}
		by := usersOf(i, users)
		if rest := len(by) - maxUsers; rest > 0 && !full {
			by = append(by[:maxUsers], fmt.Sprintf("and %d more", rest))
		}
		if len(by) == 0 && told[i.Id].GetInUse() {
			by = []string{asVolume}
		}
		for _, name := range names {
			if repo, digest, ok := strings.Cut(name, "@"); ok && !full {
				name = repo + "@" + cli.TrimID(digest, false)
			}
			row := []string{name, cli.TrimID(i.Id, full), cli.Size(i.Size), cli.Age(told[i.Id].GetPulledAt()), pinned,
				strings.Join(by, ", ")}
			if wide {
				row = append(row, digestIn(i, full), imageUser(i))
			}
			rows = append(rows, row)
		}
	}
	slices.SortStableFunc(rows, func(a, b []string) int { return cmp.Compare(a[0], b[0]) })
	head := []string{"IMAGE", "ID", "SIZE", "AGE", "PINNED", "IN USE BY"}
	if wide {
		head = append(head, "DIGEST", "USER")
	}
	return append([][]string{head}, rows...)
}

// digestIn returns the digest of an image in its registry, or "" if it is unknown.
func digestIn(i *runtimeapi.Image, full bool) string {
	for _, name := range i.RepoDigests {
		if _, digest, ok := strings.Cut(name, "@"); ok {
			return cli.TrimID(digest, full)
		}
	}
	return ""
}

// imageUser returns the user as whom an image's containers run, or "" if the image names none.
func imageUser(i *runtimeapi.Image) string {
	if i.Uid != nil {
		return fmt.Sprint(i.Uid.Value)
	}
	return i.Username
}
