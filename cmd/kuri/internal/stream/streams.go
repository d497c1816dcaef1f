package stream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// restConfig configures a client of the streaming server of a runtime on this node, without a
// proxy. It does not verify a TLS certificate, which the server has issued itself: the URL came
// over the runtime's socket and contains the secret.
func restConfig(u *url.URL) *rest.Config {
	return &rest.Config{
		Host: u.Host, TLSClientConfig: rest.TLSClientConfig{Insecure: true},
		Proxy: func(*http.Request) (*url.URL, error) { return nil, nil },
	}
}

// Options selects the streams of a process to connect, and their mode.
type Options struct {
	Stdin, TTY bool
	noOutput   bool   // only stdin
	Detach     []byte // keys that detach from a terminal; none if empty
}

// Copy connects the streams of a URL that the runtime returned, until they end. A command's exit
// code becomes the program's. The error is ErrDetached if the user has detached.
func Copy(ctx context.Context, c *cli.CLI, address string, want Options) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("the runtime's URL for the streams: %w", err)
	}
	x, err := remotecommand.NewSPDYExecutor(restConfig(u), http.MethodPost, u)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	with := remotecommand.StreamOptions{Tty: want.TTY}
	if !want.noOutput {
		with.Stdout, with.Stderr = c.Out, c.Err
	}
	if want.Stdin {
		with.Stdin = c.In
	}
	if want.TTY {
		with.Stderr = nil // a terminal has a single output
		restore, sizes, err := raw(c, want.Stdin)
		if err != nil {
			return err
		}
		defer restore()
		with.TerminalSizeQueue = sizes
		if want.Stdin && c.TerminalIn() && len(want.Detach) > 0 {
			with.Stdin = &keyWatch{in: c.In, keys: want.Detach, detach: func() { cancel(ErrDetached) }}
		}
	}
	err = x.StreamWithContext(ctx, with)
	var exit utilexec.CodeExitError
	switch {
	case errors.As(err, &exit):
		return cli.ExitCode(exit.Code)
	case err != nil && errors.Is(context.Cause(ctx), ErrDetached):
		return ErrDetached
	}
	return streamingError(u, err)
}

// dialed matches the beginning of net.OpError's text for a failed connection.
var dialed = regexp.MustCompile(`^dial tcp \S+: (connect: )?`)

// streamingError removes the URL, which contains a secret, from an error of a request for it.
func streamingError(u *url.URL, err error) error {
	if err == nil || !strings.Contains(err.Error(), u.RequestURI()) {
		return err
	}
	_, why, _ := strings.Cut(err.Error(), u.RequestURI())
	why = dialed.ReplaceAllString(strings.TrimLeft(why, `": `), "") // the address is in the text already
	return fmt.Errorf("reach the runtime's streaming server at %s: %s", u.Host, why)
}

// streamed matches the prefix that API machinery adds to a runtime's error about streams.
var streamed = regexp.MustCompile(`Internal error occurred: (error [a-z ]+: )?`)

// Annotate prefixes an error of streams with the operation, in place of the prefix of Kubernetes' API machinery.
func Annotate(what string, err error) error {
	var code cli.ExitCode
	if err == nil || errors.As(err, &code) {
		return err
	}
	if text := streamed.ReplaceAllString(err.Error(), ""); text != err.Error() {
		err = errors.New(text)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// The exit codes of shells for a command that cannot be run.
const (
	exitNotExecutable = 126
	exitNoCommand     = 127
)

// The messages of runtimes for a command that does not exist, or cannot be executed.
var (
	workingDirectory = regexp.MustCompile(`exec: "[^"]*": .*working directory|chdir to cwd`)
	noCommand        = regexp.MustCompile("executable file .*not found|exec: \"[^\"]*\": .*no such file or directory")
	notExecutable    = regexp.MustCompile(`(exec: "[^"]*": |exec failed: |exec format error).*(permission denied|is a directory|not a directory|exec format error)|exec format error`)
)

// NotRun gives an error the exit code of a shell if the error means that the command could not be executed.
func NotRun(err error) error {
	var code cli.ExitCode
	switch {
	case err == nil || errors.As(err, &code):
		return err
	case workingDirectory.MatchString(err.Error()):
		return cli.WithCode(err, exitNotExecutable)
	case noCommand.MatchString(err.Error()):
		return cli.WithCode(err, exitNoCommand)
	case notExecutable.MatchString(err.Error()):
		return cli.WithCode(err, exitNotExecutable)
	}
	return err
}
