package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kuri-cri/kuri/client"
)

// The program's exit codes. They are part of its interface, see docs/cli.md.
const (
	ExitOK          = 0
	ExitError       = 1
	ExitUsage       = 2
	exitNotFound    = 3
	ExitUnreachable = 4
	ExitSignal      = 128 // plus the signal's number, if a signal interrupted the program
)

// usageError is a wrong use of the command line.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// Usagef returns a usage error.
func Usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// WrongUsage marks err as a usage error.
func WrongUsage(err error) error { return usageError{err} }

// NotFoundError reports that a named object does not exist.
type NotFoundError struct{ error }

func (n NotFoundError) Unwrap() error { return n.error }

func NotFound(format string, args ...any) error {
	return NotFoundError{fmt.Errorf(format, args...)}
}

// LeftoverError reports that something that kuri run created could not be removed.
type LeftoverError struct{ error }

func (l LeftoverError) Unwrap() error { return l.error }

func Leftover(format string, args ...any) error { return LeftoverError{fmt.Errorf(format, args...)} }

// ExitCode ends the program with the exit code of the command that it ran. Nothing is printed for it.
type ExitCode int

func (e ExitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Exit reports an error, if any, and returns its exit code.
func (c *CLI) Exit(ctx context.Context, err error) int {
	var code ExitCode
	if err == nil {
		return ExitOK
	}
	if errors.As(err, &code) {
		return int(code)
	}
	var by Interrupt
	if errors.As(context.Cause(ctx), &by) {
		fmt.Fprintln(c.Err, "kuri:", by)
		var left LeftoverError
		if errors.As(err, &left) {
			c.Report(left)
		}
		return ExitSignal + int(by.Signal)
	}
	c.Report(err)
	var coded codedError
	var usage usageError
	var missing NotFoundError
	var unreachable *client.UnreachableError
	switch {
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, &usage):
		fmt.Fprintf(c.Err, "kuri: see %s --help\n", cmp.Or(c.verb, "kuri"))
		return ExitUsage
	case errors.As(err, &unreachable), ConnectionLost(err):
		return ExitUnreachable
	case errors.As(err, &missing), status.Code(err) == codes.NotFound:
		return exitNotFound
	}
	return ExitError
}

// Report prints an error to standard error, without control characters, since much of its text
// comes from other programs.
func (c *CLI) Report(err error) {
	for _, line := range strings.Split(Describe(err), "\n") {
		fmt.Fprintln(c.Err, "kuri:", Printable(line))
	}
}

// Describe returns the text of an error for people: without gRPC's prefixes, and with advice if there is any.
func Describe(err error) string {
	text := err.Error()
	if s := StatusOf(err); s != nil {
		// "stop pod x: rpc error: code = Unknown desc = why" becomes "stop pod x: why"
		text = rpcPrefix.ReplaceAllString(text, "")
		// ours, not the runtime's
		if s.Code() == codes.DeadlineExceeded && strings.HasPrefix(s.Message(), "context deadline exceeded") {
			text = strings.Replace(text, s.Message(), "the runtime did not answer in time (see --timeout)", 1)
		}
	}
	if ConnectionLost(err) {
		text = strings.Replace(text, StatusOf(err).Message(),
			"the connection broke: the runtime has stopped or was restarted", 1)
	}
	var unreachable *client.UnreachableError
	if errors.As(err, &unreachable) {
		text = unreachable.Error()
		switch {
		case errors.Is(err, fs.ErrPermission):
			text += "\nonly root can use it: try sudo"
		case strings.Contains(unreachable.Endpoint, "kuri"):
			text += "\nis kurid running? (systemctl start kurid; --runtime-endpoint names another socket)"
		default:
			text += "\nis the runtime running? (--runtime-endpoint names another socket)"
		}
	}
	return plainNetwork(text)
}

// rpcPrefix matches gRPC's prefix of a status. A text may have several, of joined errors.
var rpcPrefix = regexp.MustCompile(`rpc error: code = [A-Za-z]+ desc = `)

// Phrases of Go's network and HTTP packages around the address and the reason of a failure.
var networkWords = []struct {
	form *regexp.Regexp
	to   string
}{
	{regexp.MustCompile(`(Get|Head|Post) "[^"]*": `), ""},
	{regexp.MustCompile(`dial tcp: lookup (\S+)( on \S+)?: no such host`), "there is no host $1"},
	{regexp.MustCompile(`dial tcp: lookup (\S+)( on \S+)?: (?:[^\n]*: )?([^:\n]+)`), "look up the host $1$2: $3"},
	{regexp.MustCompile(`dial (?:tcp|udp) (\S+): (?:connect: )?`), "$1: "},
	{regexp.MustCompile(`\bRegistryUnavailable: `), ""}, // a prefix for kubelets; the text after it says the same
}

func plainNetwork(text string) string {
	for _, w := range networkWords {
		text = w.form.ReplaceAllString(text, w.to)
	}
	return text
}

// StatusOf returns the gRPC status of a failed call, or nil if err is not from a call.
// (status.FromError puts all of err's text into the message.)
func StatusOf(err error) *status.Status {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus()
	}
	return nil
}

// ConnectionLost reports whether a call failed because its connection broke. A server may also
// return Unavailable for other reasons.
func ConnectionLost(err error) bool {
	s := StatusOf(err)
	if s == nil || s.Code() != codes.Unavailable {
		return false
	}
	for _, text := range []string{"connection error: ", "error reading from server: ", "closing transport due to: ",
		"transport is closing"} {
		if strings.HasPrefix(s.Message(), text) {
			return true
		}
	}
	return false
}

// NotServed reports whether the runtime does not have the method that was called. A method that is
// served can be Unimplemented for one request.
func NotServed(err error) bool {
	s := StatusOf(err)
	if s == nil || s.Code() != codes.Unimplemented {
		return false
	}
	text := s.Message()
	return text == "" || strings.HasPrefix(text, "unknown service ") || strings.HasPrefix(text, "unknown method ") ||
		strings.HasPrefix(text, "method ") && strings.HasSuffix(text, " not implemented")
}

// NeedsKuri explains the error of a call that only Kuri's own runtime serves.
func NeedsKuri(img *client.Images, what string, err error) error {
	if NotServed(err) {
		return fmt.Errorf("%s is not Kuri's runtime, and the CRI has no call for %s", img.Endpoint(), what)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Interrupt is the cause of a context that a signal ended: the user or the system wants the program
// to exit.
type Interrupt struct{ syscall.Signal }

func (i Interrupt) Error() string {
	if i.Signal == syscall.SIGINT { // Ctrl-C: the user knows
		return "interrupted"
	}
	return fmt.Sprintf("interrupted (%s)", i.Signal)
}

// IsGone reports whether a call failed because its object no longer exists.
func IsGone(err error) bool { return status.Code(err) == codes.NotFound }

// codedError is an error with an exit code of its own.
type codedError struct {
	error
	code int
}

func (c codedError) Unwrap() error { return c.error }

// WithCode gives an error an exit code.
func WithCode(err error, code int) error { return codedError{err, code} }
