package session

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal returns a source of a terminal's output, and the terminal.
func terminal(t *testing.T) (*Source, *os.File) {
	t.Helper()
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("SKIP: no terminals here: %v", err)
	}
	src, err := NewSource(master, "stdout")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER,
		unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Skipf("SKIP: open the other end of a terminal: %v", errno)
	}
	return src, os.NewFile(slave, "terminal")
}

// The last line written to a terminal before its close is read. A reader that trusts the first EIO
// loses it about once in some thousand times on two busy CPUs.
func TestTheLastLineOfATerminalIsRead(t *testing.T) {
	block := bytes.Repeat([]byte("A"), 1500)
	for i := range 2000 {
		src, slave := terminal(t)
		go func() {
			for range i % 7 { // sometimes more than a terminal buffers: 4096 bytes
				slave.Write(block)
			}
			slave.Write([]byte("seen"))
			slave.Close()
		}()
		var got []byte
		src.CopyTo(func(data []byte) { got = append(got, data...) })
		if len(got) != i%7*len(block)+4 || !bytes.HasSuffix(got, []byte("seen")) {
			t.Fatalf("terminal %d: %d bytes, the end %q", i, len(got), got[max(0, len(got)-10):])
		}
	}
}

// An error that ends the reading must come twice.
func TestReadTerminal(t *testing.T) {
	for _, c := range []struct {
		name    string
		wait    bool
		answers []unix.Errno // results from the kernel, one for each read; 0 is data
		want    unix.Errno
	}{
		{"data", true, []unix.Errno{0}, 0},
		{"closed, and output was on its way", true, []unix.Errno{unix.EIO, 0}, 0},
		{"closed", true, []unix.Errno{unix.EIO, unix.EIO}, unix.EIO},
		{"nothing yet", true, []unix.Errno{unix.EAGAIN}, unix.EAGAIN},
		{"no time left, and output was on its way", false, []unix.Errno{unix.EAGAIN, 0}, 0},
		{"no time left", false, []unix.Errno{unix.EAGAIN, unix.EAGAIN}, unix.EAGAIN},
		{"no time left, and closed", false, []unix.Errno{unix.EAGAIN, unix.EIO}, unix.EIO},
		{"another error", false, []unix.Errno{unix.EBADF}, unix.EBADF},
	} {
		t.Run(c.name, func(t *testing.T) {
			left := c.answers
			n, err := ReadTerminal(c.wait, func() (int, error) {
				answer := left[0]
				left = left[1:]
				if answer != 0 {
					return 0, answer
				}
				return 5, nil
			})
			if len(left) > 0 {
				t.Errorf("%d answers were not asked for", len(left))
			}
			if c.want == 0 && (n != 5 || err != nil) || c.want != 0 && !errors.Is(err, c.want) {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
}
