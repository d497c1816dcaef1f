package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
)

func (c *cli) runCommand() *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "run [flags] FILE | IMAGE [COMMAND [ARG...]]",
		Short: "Run the pods of a Kubernetes manifest, or an image",
		Long: `Run the pods of a Kubernetes manifest, - for one on standard input: pull the images that are missing, run the init
containers in their order, start the containers, and print what runs where. Fields of the manifest that are ignored are
named; those without which the pod would be another one are refused. If anything fails, nothing stays behind.

An IMAGE is run as a pod of one container, with COMMAND in place of the image's own; most flags are docker's. What is there
as a file, or is written as one (./web, web.yaml), is a manifest; --file says so in any case.

The pods run in the background. With --rm the logs are followed until the containers have ended, or until Ctrl-C stops them;
then everything is removed, and the exit code is that of the last container that failed. With -i the input goes to the
image's container, with -it its terminal is this one, which ctrl-p ctrl-q (--detach-keys) leaves.`,
		Example: `  kuri run web.yaml
  kuri run --rm busybox echo hello
  kuri run -it --rm busybox sh
  kuri run --name web -p 8080:80 -v ./html:/usr/share/nginx/html:ro -e TZ=UTC nginx`,
		RunE: func(cmd *cobra.Command, args []string) error { return c.runWhat(cmd, o, args) },
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows the image is the container's
	f.StringVarP(&o.file, "file", "f", "", "`FILE` with the manifest, - for standard input")
	f.StringVar(&o.name, "name", "", "`NAME` of the pod, in place of the manifest's or of one by chance")
	f.BoolVar(&o.rm, "rm", false, "follow the logs, and remove the pod when its containers have ended")
	f.StringArrayVar(&o.configs, "configmap", nil, "`FILE` with ConfigMaps and Secrets that the manifest uses")
	o.image.flags(cmd)
	c.ownLetters(cmd)
	c.authFileFlag(cmd)
	c.formatFlag(cmd)
	return cmd
}

// runOptions are the flags of kuri run.
type runOptions struct {
	file, name string
	configs    []string // more files with ConfigMaps and Secrets
	rm         bool
	image      imageOptions
}

// runWhat runs a manifest or an image, whichever the arguments mean.
func (c *cli) runWhat(cmd *cobra.Command, o *runOptions, args []string) error {
	path, rest := o.file, args
	if path == "" {
		if len(args) == 0 {
			return wrongUsage(takes(1, many)(cmd, args))
		}
		if !looksLikeFile(args[0], args[1:]) {
			if len(o.configs) > 0 {
				return usagef("--configmap is for a manifest: an image has -e and --env-file")
			}
			return c.runImage(cmd.Context(), o, args[0], args[1:])
		}
		path, rest = args[0], args[1:]
	}
	if err := c.flagsAfterFile(cmd, rest); err != nil {
		return err
	}
	if f := o.image.used(cmd); f != "" {
		return usagef("--%s is for an image: of a manifest, %s says it", f, path)
	}
	return c.runManifest(cmd.Context(), o, path)
}

// manifestExtensions end the names of manifests, and of no images.
var manifestExtensions = []string{".yaml", ".yml", ".json"}

// looksLikeFile reports whether the argument of kuri run is a manifest and not an image.
func looksLikeFile(arg string, more []string) bool {
	if slices.Contains(manifestExtensions, filepath.Ext(arg)) {
		return true
	}
	if arg == "-" || strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") || strings.HasPrefix(arg, "~") {
		return true
	}
	info, err := os.Stat(arg)
	return err == nil && !info.IsDir() && (len(more) == 0 || strings.HasPrefix(more[0], "-"))
}

// flagsAfterFile takes the flags that stand after a manifest, where nothing else may.
func (c *cli) flagsAfterFile(cmd *cobra.Command, rest []string) error {
	f := cmd.Flags()
	f.SetInterspersed(true)
	if err := f.Parse(rest); err != nil {
		return wrongUsage(flagError(cmd, err))
	}
	if f.NArg() > 0 {
		return usagef("%q is one too many: kuri run FILE takes one manifest, which says the command itself", f.Arg(0))
	}
	if help, _ := f.GetBool("help"); help {
		return errors.Join(cmd.Help(), exitCode(exitOK))
	}
	if err := cmd.PreRunE(cmd, nil); err != nil {
		return err
	}
	return c.absolute()
}

func (c *cli) runManifest(ctx context.Context, o *runOptions, path string) error {
	pods, err := c.manifest(ctx, path, o)
	if err != nil {
		return err
	}
	r, err := c.newRun(ctx, pods)
	if err != nil {
		return err
	}
	defer r.close()
	if err := r.start(ctx); err != nil {
		return errors.Join(err, r.remove(ctx))
	}
	if err := r.print(ctx, o.rm); err != nil {
		return errors.Join(err, r.remove(ctx))
	}
	if !o.rm {
		return nil
	}
	return r.toTheEnd(ctx)
}

// toTheEnd follows the logs until the containers have ended and removes the pods. The exit code is the containers'.
func (r *run) toTheEnd(ctx context.Context) error {
	code, err := r.attend(ctx)
	if err := errors.Join(err, r.remove(ctx)); err != nil {
		return err
	}
	if code != 0 {
		return exitCode(code)
	}
	return nil
}

// maxManifest bounds what is read of a file, in bytes; Decode has its own word about the size.
const maxManifest = 4 << 20

// manifest reads the pods of a file and says on standard error what of it is passed over and ignored.
func (c *cli) manifest(ctx context.Context, path string, o *runOptions) ([]*manifest.Pod, error) {
	data, err := c.manifestFile(ctx, path)
	if err != nil {
		return nil, err
	}
	options := manifest.Options{Name: o.name}
	for _, more := range o.configs {
		raw, err := c.manifestFile(ctx, more)
		if err != nil {
			return nil, fmt.Errorf("--configmap: %w", err)
		}
		options.Configs = append(options.Configs, manifest.Config{Path: more, Data: raw})
	}
	file, err := manifest.Decode(data, options)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be run:\n%w", path, err)
	}
	for _, note := range file.Notes {
		fmt.Fprintln(c.err, "kuri:", printable(note))
	}
	for _, p := range file.Pods {
		for _, w := range p.Warnings {
			fmt.Fprintf(c.err, "kuri: pod %s: %s\n", p.Name(), printable(w))
		}
	}
	return file.Pods, nil
}

// manifestFile reads a file, - for standard input.
func (c *cli) manifestFile(ctx context.Context, path string) ([]byte, error) {
	in := c.input(ctx)
	if path != "-" {
		file, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, notFound("%w", err)
		}
		if err != nil {
			return nil, err
		}
		defer file.Close()
		if info, err := file.Stat(); err == nil && info.IsDir() {
			return nil, fmt.Errorf("%s is a directory: name a manifest in it", path)
		}
		in = file
	}
	if path == "-" && c.terminalIn() {
		fmt.Fprintln(c.err, "kuri: the manifest is read from the terminal, up to Ctrl-D")
	}
	data, err := io.ReadAll(io.LimitReader(in, maxManifest))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}
