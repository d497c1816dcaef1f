package top

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// screen is a terminal in exclusive use: in raw mode, on the alternate buffer, without a cursor.
// close restores it, however the program ends.
type screen struct {
	in, out *os.File

	mu  sync.Mutex  // guards old
	old *term.State // the original state; nil while the terminal is not in use
}

const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[2J"
	leaveScreen = "\x1b[0m\x1b[?25h\x1b[?1049l"
)

func openScreen(in, out *os.File) (*screen, error) {
	s := &screen{in: in, out: out}
	return s, s.enter()
}

func (s *screen) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, err := term.MakeRaw(int(s.in.Fd()))
	if err != nil {
		return fmt.Errorf("set the terminal up: %w", err)
	}
	s.old = old
	_, err = s.out.WriteString(enterScreen)
	return err
}

// close restores the terminal. It may be called repeatedly.
func (s *screen) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.old == nil {
		return
	}
	_, _ = s.out.WriteString(leaveScreen) // fails only if the terminal is gone
	_ = term.Restore(int(s.in.Fd()), s.old)
	s.old = nil
}

// suspend restores the terminal and stops the program until it is continued, like Ctrl-Z.
func (s *screen) suspend() error {
	s.close()
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, syscall.SIGCONT)
	defer signal.Stop(continued)
	if err := syscall.Kill(0, syscall.SIGTSTP); err != nil { // the whole process group, like the terminal
		return err
	}
	select {
	case <-continued:
	case <-time.After(unstopped):
	}
	return s.enter()
}

// unstopped is how long suspend waits for a stop after SIGTSTP: the kernel does not stop an
// orphaned process group, which no shell could continue.
const unstopped = 200 * time.Millisecond

// size returns the columns and lines, or 80 by 24 if the terminal does not know them.
func (s *screen) size() (width, height int) {
	width, height, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

// styles has the sequences that begin a style. Those with color are used only if colors are enabled.
var styles = map[int]string{heading: "\x1b[1m", chosen: "\x1b[7m", alarm: "\x1b[31;1m"}

// draw writes lines to the screen in a single write.
func (s *screen) draw(lines []line, width, height int, colors bool) error {
	var out bytes.Buffer
	out.WriteString("\x1b[H")
	for i, l := range lines {
		if i > 0 {
			out.WriteString("\r\n")
		}
		style := styles[l.style]
		if l.style == alarm && !colors {
			style = "\x1b[1m"
		}
		text := l.text
		if l.style == chosen { // fill the width of the screen
			text = cli.Pad(text, width)
		}
		out.WriteString(style + text + "\x1b[0m\x1b[K")
	}
	out.WriteString("\x1b[J")
	_, err := s.out.Write(out.Bytes())
	return err
}
