package layer

import "io"

const (
	aheadBlock = 128 << 10 // bytes of a block that is read ahead
	aheadDepth = 6         // blocks
)

// ahead reads a stream in a goroutine of its own, a few blocks ahead of who reads it, so that fetching, decompressing
// and writing files go on at once. It is read by one goroutine, and closed by the same one.
type ahead struct {
	full chan block  // read, in order; closed after the stream's end
	free chan []byte // to be filled
	quit chan struct{}
	done chan struct{}

	now  block // being handed out
	left []byte
}

// block is a piece of the stream and how the stream went on after it.
type block struct {
	bytes []byte
	err   error
}

// readAhead starts reading from, which must be left alone until close has returned.
func readAhead(from io.Reader) *ahead {
	a := &ahead{
		full: make(chan block, aheadDepth),
		free: make(chan []byte, aheadDepth),
		quit: make(chan struct{}),
		done: make(chan struct{}),
	}
	go a.run(from)
	return a
}

func (a *ahead) run(from io.Reader) {
	defer close(a.done)
	defer close(a.full)
	for made := 0; ; {
		var buf []byte
		select {
		case buf = <-a.free:
		default:
			if made < aheadDepth {
				made++
				buf = make([]byte, aheadBlock)
				break
			}
			select {
			case buf = <-a.free:
			case <-a.quit:
				return
			}
		}
		n, err := io.ReadAtLeast(from, buf, len(buf)/2) // a network gives it in crumbs
		if err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
		select {
		case a.full <- block{buf[:n], err}:
		case <-a.quit:
			return
		}
		if err != nil {
			return
		}
	}
}

// Read gives what has been read, and the stream's own error after it.
func (a *ahead) Read(p []byte) (int, error) {
	for len(a.left) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.bytes != nil {
			a.free <- a.now.bytes[:cap(a.now.bytes)]
		}
		var ok bool
		if a.now, ok = <-a.full; !ok {
			return 0, io.ErrClosedPipe // closed, or being closed
		}
		a.left = a.now.bytes
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}

// close stops the reading and waits for it. A Read of the source that hangs must have been ended before.
func (a *ahead) close() {
	close(a.quit)
	<-a.done
}
