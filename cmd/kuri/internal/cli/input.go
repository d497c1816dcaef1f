package cli

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// Input returns the program's input. A read ends when ctx does, so that Ctrl-C works at a prompt.
func (c *CLI) Input(ctx context.Context) io.Reader { return &boundReader{ctx, c.In} }

type boundReader struct {
	ctx context.Context
	in  io.Reader
}

// Read abandons a read that is still pending when ctx ends. Its data is lost, but then the program exits.
func (b *boundReader) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	type result struct {
		data []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		buf := make([]byte, len(p))
		n, err := b.in.Read(buf)
		read <- result{buf[:n], err}
	}()
	select {
	case r := <-read:
		return copy(p, r.data), r.err
	case <-b.ctx.Done():
		return 0, context.Cause(b.ctx)
	}
}

// ReadPassword reads a line from a terminal without echo. When ctx ends, the terminal is restored.
func ReadPassword(ctx context.Context, terminal *os.File) ([]byte, error) {
	fd := int(terminal.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	type result struct {
		line []byte
		err  error
	}
	read := make(chan result, 1)
	go func() {
		line, err := term.ReadPassword(fd)
		read <- result{line, err}
	}()
	select {
	case r := <-read:
		return r.line, r.err
	case <-ctx.Done():
		_ = term.Restore(fd, before)
		return nil, context.Cause(ctx)
	}
}

// Confirmed asks a question and reports whether the answer is yes.
func (c *CLI) Confirmed(ctx context.Context, question string) bool {
	fmt.Fprint(c.Err, question)
	line, _ := bufio.NewReader(c.Input(ctx)).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return answer == "y" || answer == "yes"
}

// TerminalIn reports whether the program's input is a terminal.
func (c *CLI) TerminalIn() bool {
	file, ok := c.In.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
