package session

import "golang.org/x/sys/unix"

// ReadTerminal reads a terminal's master end by read, which returns how much it has read. A terminal whose other end is
// closed answers EIO, one that has no output answers EAGAIN. Where that would end the reading (EAGAIN does not when the
// caller is going to wait) it is believed only when a second read says so, too.
//
// The kernel may answer so although output is left. What is written to a terminal reaches its master by a work item.
// n_tty_read in drivers/tty/n_tty.c waits for that item, looks for output, and then looks whether the other end is closed.
// The last write and the close may both come after the waiting. What was written before a read began is found by that
// read, so the second one finds it.
func ReadTerminal(wait bool, read func() (int, error)) (int, error) {
	n, err := read()
	if err == unix.EIO || err == unix.EAGAIN && !wait {
		n, err = read()
	}
	return n, err
}
