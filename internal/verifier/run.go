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
	maxOutput = 32 << 10 // bytes kept of each output stream; the program may write more
	maxReason = 1 << 10  // bytes of output in an error
)

// call is one run of a program.
type call struct {
	name  string
	args  []string
	stdin []byte
	env   []string
}

// run runs one program. The error is a [*Refusal] or the error of ctx.
func (p *Programs) run(ctx context.Context, c call) (reason string, err error) {
	limited, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	stdout, stderr := &headBuffer{}, &headBuffer{}
	cmd := exec.CommandContext(limited, filepath.Join(p.Dir, c.name), c.args...)
	cmd.Dir, cmd.Env = "/", c.env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.stdin), stdout, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second // a process outside the PID namespace may hold a pipe open

	runtime.LockOSThread() // Pdeathsig fires when the thread that started the program ends
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	if stderr.kept.Len() > 0 {
		slog.Debug("an image verifier says", "verifier", c.name, "stderr", stderr.kept.String())
	}
	return stdout.line(), p.verdict(ctx, limited, c.name, err, stdout, stderr)
}

// verdict turns the exit of a program into an error.
func (p *Programs) verdict(ctx, limited context.Context, name string, err error, stdout, stderr *headBuffer) error {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case limited.Err() != nil:
		return &Refusal{name, fmt.Sprintf("it did not answer within %s and was ended; see image.verifier_timeout",
			p.Timeout)}
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

// headBuffer keeps the first maxOutput bytes written to it and discards the rest. It belongs to one
// goroutine at a time. It must not embed bytes.Buffer, whose ReadFrom would keep everything.
type headBuffer struct{ kept bytes.Buffer }

func (b *headBuffer) Write(p []byte) (int, error) {
	b.kept.Write(p[:min(len(p), maxOutput-b.kept.Len())])
	return len(p), nil
}

// line returns the output as one line of bounded length, for an error.
func (b *headBuffer) line() string {
	said := strings.Join(strings.Fields(strings.ToValidUTF8(b.kept.String(), "?")), " ")
	said = strings.Map(printable, said)
	if len(said) > maxReason {
		said = strings.ToValidUTF8(said[:maxReason], "") + "…"
	}
	return said
}

// printable replaces control characters, which could manipulate a terminal or a log.
func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return '?'
	}
	return r
}
