package stream

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// WithoutTerminal reports whether tty is possible, and prints a note if not: without a terminal as
// the input of -i, a program with a terminal would wait for keys forever.
func WithoutTerminal(c *cli.CLI, stdin, tty bool) (still bool) {
	if stdin && tty && !c.TerminalIn() {
		fmt.Fprintln(c.Err, "kuri: the input is not a terminal: going on without one (-i alone says the same)")
		return false
	}
	return tty
}

// raw sets the terminal, if there is one, to pass on every key, and returns its sizes. restore
// restores its settings.
func raw(c *cli.CLI, stdin bool) (restore func(), sizes remotecommand.TerminalSizeQueue, err error) {
	file, ok := c.In.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return func() {}, nil, nil
	}
	fd := int(file.Fd())
	q := &windowSizes{fd: fd, changed: make(chan os.Signal, 1), done: make(chan struct{})}
	q.changed <- syscall.SIGWINCH // for the initial size
	signal.Notify(q.changed, syscall.SIGWINCH)
	restore = q.stop
	if stdin {
		old, err := term.MakeRaw(fd)
		if err != nil {
			q.stop()
			return nil, nil, fmt.Errorf("set the terminal up: %w", err)
		}
		restore = func() {
			q.stop()
			_ = term.Restore(fd, old)
		}
	}
	return restore, q, nil
}

// windowSizes returns the sizes of our terminal, one for each change.
type windowSizes struct {
	fd      int
	changed chan os.Signal
	done    chan struct{}
}

// Next waits for a change. It returns nil after stop.
func (q *windowSizes) Next() *remotecommand.TerminalSize {
	select {
	case <-q.changed:
	case <-q.done:
		return nil
	}
	width, height, err := term.GetSize(q.fd)
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(width), Height: uint16(height)}
}

func (q *windowSizes) stop() {
	signal.Stop(q.changed)
	close(q.done)
}

// defaultDetachKeys leave a terminal without ending its command. They are docker's.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// ErrDetached reports that the user pressed the detach keys.
var ErrDetached = errors.New("detached")

// DetachFlag adds the flag --detach-keys to cmd.
func DetachFlag(cmd *cobra.Command, keys *string) {
	cmd.Flags().StringVar(keys, "detach-keys", defaultDetachKeys,
		"`KEYS` that leave the terminal, such as ctrl-p,ctrl-q or ctrl-]; empty for none")
}

// ParseKeys returns the bytes that a terminal sends for keys such as "ctrl-p,ctrl-q" or "q".
func ParseKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var out []byte
	for key := range strings.SplitSeq(s, ",") {
		letter, ctrl := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case ctrl && len(letter) == 1 && (letter[0] >= 'a' && letter[0] <= 'z' || strings.Contains("@[\\]^_", letter)):
			out = append(out, strings.ToUpper(letter)[0]-'@')
		case len(key) == 1:
			out = append(out, key[0])
		default:
			return nil, cli.Usagef("--detach-keys %q: expected keys such as ctrl-p or q, with commas between them: %q is neither a character nor ctrl- and one of a-z @ [ \\ ] ^ _", s, key)
		}
	}
	return out, nil
}

// keyWatch passes its input on until it has read keys in sequence. Then it calls detach and never
// returns again. It holds back keys that may begin the sequence until the next one arrives.
type keyWatch struct {
	in     io.Reader
	keys   []byte
	detach func()

	matched int    // number of keys matched
	ready   []byte // input to pass on
	err     error  // of in, to be returned after ready
}

func (k *keyWatch) Read(p []byte) (int, error) {
	for len(k.ready) == 0 && k.err == nil {
		buf := make([]byte, len(p))
		n, err := k.in.Read(buf)
		for _, b := range buf[:n] {
			k.key(b)
		}
		if err != nil {
			k.ready, k.err = append(k.ready, k.keys[:k.matched]...), err
		}
	}
	n := copy(p, k.ready)
	k.ready = k.ready[n:]
	if n == 0 && len(p) > 0 {
		return 0, k.err
	}
	return n, nil
}

// key processes one byte.
func (k *keyWatch) key(b byte) {
	if b != k.keys[k.matched] {
		k.ready = append(k.ready, k.keys[:k.matched]...)
		if k.matched = 0; b != k.keys[0] {
			k.ready = append(k.ready, b)
			return
		}
	}
	if k.matched++; k.matched == len(k.keys) {
		k.detach()
		select {} // an end of this input would end the container's
	}
}
