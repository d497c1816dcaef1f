package verifier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	maxOutput = 32 << 10 // bytes of each stream of a program that are kept; it may write more
	maxReason = 1 << 10  // bytes of it in an error
)

// call is one program that is to be asked.
type call struct {
	name  string
	args  []string
	stdin []byte
	env   []string
}

// run asks one program. The error is a [*Refusal], or that of ctx.
func (p *Programs) run(ctx context.Context, c call) (reason string, err error) {
	limited, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	stdout, stderr := &beginning{}, &beginning{}
	cmd := exec.CommandContext(limited, filepath.Join(p.Dir, c.name), c.args...)
	cmd.Dir, cmd.Env = "/", c.env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.stdin), stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second // should a pipe have been handed to a process elsewhere

	runtime.LockOSThread() // the thread that starts it is the one whose end would kill it
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	if stderr.kept.Len() > 0 {
		slog.Debug("an image verifier says", "verifier", c.name, "stderr", stderr.kept.String())
	}
	return stdout.line(), p.verdict(ctx, limited, c.name, err, stdout, stderr)
}

// verdict tells what the end of a program means.
func (p *Programs) verdict(ctx, limited context.Context, name string, err error, stdout, stderr *beginning) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case limited.Err() != nil:
		return &Refusal{name, fmt.Sprintf("it did not answer within %s and was ended; see image.verifier_timeout", p.Timeout)}
	case errors.As(err, &exit) && exit.Exited():
		said := stdout.line()
		if said == "" {
			said = stderr.line()
		}
		if said == "" {
			said = "it gives no reason"
		}
		return &Refusal{name, fmt.Sprintf("refused with exit code %d: %s", exit.ExitCode(), said)}
	case errors.As(err, &exit):
		return &Refusal{name, fmt.Sprintf("it was ended by the signal %q", exit.Sys().(syscall.WaitStatus).Signal())}
	}
	return &Refusal{name, fmt.Sprintf("it cannot be run: %v", err)}
}

// beginning keeps the first bytes that are written to it, and takes all. It belongs to one goroutine at a time. (It embeds no
// buffer: that one's ReadFrom would take in everything.)
type beginning struct{ kept bytes.Buffer }

func (b *beginning) Write(p []byte) (int, error) {
	b.kept.Write(p[:min(len(p), maxOutput-b.kept.Len())])
	return len(p), nil
}

// line is what was written as one line for an error, bounded.
func (b *beginning) line() string {
	said := strings.Join(strings.Fields(strings.ToValidUTF8(b.kept.String(), "?")), " ")
	said = strings.Map(printable, said)
	if len(said) > maxReason {
		said = strings.ToValidUTF8(said[:maxReason], "") + "…"
	}
	return said
}

// printable replaces what could play tricks on a terminal or a log.
func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return '?'
	}
	return r
}
