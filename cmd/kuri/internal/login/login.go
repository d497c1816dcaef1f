package login

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/credential"
)

func Command(c *cli.CLI) *cobra.Command {
	var user, password string
	var fromStdin, unchecked bool
	var certsDirs []string
	cmd := &cobra.Command{
		Use:   "login [flags] [REGISTRY]",
		Short: "Store the credentials of a registry for kuri pull and kuri run",
		Long: `Ask for the credentials of a registry, docker.io when none is named, try them, and keep them where docker does, for kuri pull
and kuri run: in the file of --authfile, of REGISTRY_AUTH_FILE, in config.json of DOCKER_CONFIG or of ~/.docker, or with the
credential helper that this file names. A kubelet has its own way to credentials and does not read these. The registry is
asked with the certificates that --certs-dir has for it, never a mirror.`,
		Args:              cli.RangeArgs(0, 1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			registry, err := registryName(args)
			if err != nil {
				return err
			}
			file, err := authFile(c)
			if err != nil {
				return err
			}
			secret, err := askLogin(cmd.Context(), c, registry, user, password, fromStdin)
			if err != nil {
				return err
			}
			if !unchecked {
				at, err := credential.Reach(certsDirs, registry)
				if err != nil {
					return err
				}
				err = credential.Verify(ctx, at, registry, secret)
				var unknown x509.UnknownAuthorityError
				if errors.As(err, &unknown) && len(certsDirs) > 0 {
					return fmt.Errorf("%w\ngive the CA of its certificate in %s", err, filepath.Join(certsDirs[0], registry, "hosts.toml"))
				}
				var refused *credential.RefusedError
				if err != nil && !errors.As(err, &refused) {
					return fmt.Errorf("%w\n--no-check keeps them without asking", err)
				}
				if err != nil {
					return err
				}
			}
			if err := file.Keep(ctx, registry, secret); err != nil {
				return err
			}
			fmt.Fprintf(c.Out, "logged in to %s, kept by %s\n", registry, file.Path())
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVarP(&user, "username", "u", "", "user name")
	f.StringVarP(&password, "password", "p", "", "password or token; other users of the machine can see it: better --password-stdin")
	f.BoolVar(&fromStdin, "password-stdin", false, "read the password from standard input")
	f.BoolVar(&unchecked, "no-check", false, "do not ask the registry whether it takes them")
	f.StringSliceVar(&certsDirs, "certs-dir", []string{"/etc/kuri/certs.d", "/etc/containerd/certs.d"}, "directories with REGISTRY/hosts.toml: CAs, client certificates, skip_verify; the first that has the registry counts")
	AuthFileFlag(c, cmd)
	return cmd
}

func LogoutCommand(c *cli.CLI) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "logout [REGISTRY]",
		Short:             "Delete the stored credentials of a registry",
		Args:              cli.RangeArgs(0, 1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			registry, err := registryName(args)
			if err != nil {
				return err
			}
			file, err := authFile(c)
			if err != nil {
				return err
			}
			had, err := file.Forget(cmd.Context(), registry)
			if err != nil {
				return err
			}
			if !had {
				return cli.NotFound("%s has no credentials of %s", file.Path(), registry)
			}
			fmt.Fprintln(c.Out, "logged out of", registry)
			return nil
		},
	}
	AuthFileFlag(c, cmd)
	return cmd
}

// registryName returns the requested registry: a host, with or without a port.
func registryName(args []string) (string, error) {
	if len(args) == 0 {
		return "docker.io", nil
	}
	host := strings.ToLower(args[0])
	host = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(host, "https://"), "http://"), "/")
	host = strings.TrimSuffix(strings.TrimSuffix(host, "/v1"), "/v2") // docker's notation
	switch strings.TrimSuffix(host, ":443") {
	case "docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com":
		return "docker.io", nil
	}
	named, err := reference.ParseNormalizedNamed(host + "/x")
	if err != nil || reference.Path(named) != "x" || reference.Domain(named) != host {
		return "", cli.Usagef("%q is not a registry: expected a host such as registry.example or localhost:5000", args[0])
	}
	return host, nil
}

func AuthFileFlag(c *cli.CLI, cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.AuthFile, "authfile", "", "file with the credentials (env REGISTRY_AUTH_FILE, DOCKER_CONFIG; default ~/.docker/config.json)")
}

func authFile(c *cli.CLI) (*credential.File, error) {
	path, err := credential.Path(c.AuthFile, c.Env)
	if err != nil {
		return nil, err
	}
	return credential.Open(path)
}

// askLogin takes the user name and the password from the flags, or prompts on the terminal.
func askLogin(ctx context.Context, c *cli.CLI, registry, user, password string, fromStdin bool) (credential.Credential, error) {
	var none credential.Credential
	terminal, _ := c.In.(*os.File)
	if terminal != nil && !term.IsTerminal(int(terminal.Fd())) {
		terminal = nil
	}
	switch {
	case fromStdin && (user == "" || password != ""):
		return none, cli.Usagef("--password-stdin goes with --username and without --password")
	case !fromStdin && terminal == nil && (user == "" || password == ""):
		return none, cli.Usagef("there is no terminal to ask on: --username and --password-stdin")
	}
	in := bufio.NewReader(io.LimitReader(c.Input(ctx), 64<<10))
	if user == "" {
		fmt.Fprintf(c.Err, "user name for %s: ", registry)
		line, err := in.ReadString('\n')
		if user = strings.TrimSpace(line); user == "" {
			return none, errors.Join(errors.New("no user name"), err)
		}
	}
	switch {
	case fromStdin:
		raw, err := io.ReadAll(in)
		if err != nil {
			return none, fmt.Errorf("read the password: %w", err)
		}
		password = strings.TrimRight(string(raw), "\r\n")
	case password == "":
		fmt.Fprintf(c.Err, "password for %s at %s: ", user, registry)
		raw, err := cli.ReadPassword(ctx, terminal)
		fmt.Fprintln(c.Err)
		if err != nil {
			return none, fmt.Errorf("read the password: %w", err)
		}
		password = string(raw)
	}
	if password == "" {
		return none, errors.New("no password")
	}
	return credential.Credential{Username: user, Password: password}, nil
}

// KeptCredentials opens the file with the credentials. If that fails it prints the error and returns nil.
func KeptCredentials(c *cli.CLI, doing string) *credential.File {
	file, err := authFile(c)
	if err != nil {
		if c.AuthFile != "" || c.Env("HOME") != "" { // without a home no credentials are stored
			fmt.Fprintf(c.Err, "kuri: %s without credentials: %s\n", doing, cli.Printable(err.Error()))
		}
		return nil
	}
	return file
}

// AuthFor returns the stored credentials for an image's registry, or nil. Unreadable credentials do
// not prevent a pull: most images need none.
func AuthFor(ctx context.Context, c *cli.CLI, image string) *runtimeapi.AuthConfig {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil // the runtime reports the error
	}
	file := KeptCredentials(c, "pulling")
	if file == nil {
		return nil
	}
	found, err := file.Find(ctx, reference.Domain(named), reference.Path(named))
	if err != nil {
		fmt.Fprintln(c.Err, "kuri: pulling without credentials:", cli.Printable(err.Error()))
		return nil
	}
	if found == (credential.Credential{}) {
		return nil
	}
	return AuthConfig(found)
}

// AuthConfig returns a credential for a request of the CRI.
func AuthConfig(c credential.Credential) *runtimeapi.AuthConfig {
	return &runtimeapi.AuthConfig{Username: c.Username, Password: c.Password, IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken}
}
