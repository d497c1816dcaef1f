package session

import (
	"errors"

	"golang.org/x/sys/unix"
)

// ReadTerminal reads from a terminal's master end with read, which returns the number of bytes. A
// read returns EIO if the other end is closed, and EAGAIN if there is no output. If that would end
// the reading, ReadTerminal reads a second time to confirm it. (EAGAIN does not end the reading of
// a caller that waits.)
//
// The kernel may return these errors although there is output left: output reaches the master
// through a work item. n_tty_read in drivers/tty/n_tty.c waits for that item, looks for output, and
// then checks whether the other end is closed. The last write and the close may both happen after
// the wait. A read finds everything that was written before it began, so the second read finds that
// last write.
func ReadTerminal(wait bool, read func() (int, error)) (int, error) {
	n, err := read()
	if errors.Is(err, unix.EIO) || errors.Is(err, unix.EAGAIN) && !wait {
		n, err = read()
	}
	return n, err
}
