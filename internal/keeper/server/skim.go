package server

import (
	"bytes"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// Output is skimmed while a container's log has used up its rate: the kernel discards it unread,
// not at each write but every skimPause. So a container that prints as fast as it can costs the
// keeper little CPU. The pipe is enlarged so that the container seldom blocks between two skims.
const (
	skimPause = 50 * time.Millisecond
	skimPipe  = 256 << 10 // bytes
	skimUntil = 2 * pieceMax
)

// starved reports whether output is to be dropped unread: some was dropped, and the rate has not
// recovered enough to be worth reading.
func (l *logFile) starved(now time.Time) bool {
	if l.limits.rate <= 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &l.allowed
	return a.bytes > 0 && a.at.Add(a.wait(min(float64(l.limits.rate)*rateBurst/2, skimUntil), l.limits.rate)).After(now)
}

// pauseSkimming returns when it is time to skim again. The times are the same for all containers,
// so the keeper wakes up once for all.
func pauseSkimming() {
	time.Sleep(skimPause - time.Duration(time.Now().UnixNano())%skimPause)
}

// wait returns how long after its last use the bucket contains n bytes.
func (a *allowance) wait(n float64, rate int64) time.Duration {
	return time.Duration(max(0, n-a.left) / float64(rate) * float64(time.Second))
}

// skip counts output that is dropped unread, without its number of lines.
func (l *logFile) skip(stream string, n int) {
	if n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.allowed.bytes += uint64(n)
	l.allowed.unread = true
	for i := range streams {
		if streams[i] == stream {
			l.lines[i].cut = l.lines[i].open
		}
	}
}

// skims reports whether the output is skimmed now. It is not while a client is attached, which gets
// all of it.
func (t *tap) skims() bool {
	return t.transit == nil && t.log.starved(time.Now()) && (t.noClient == nil || t.noClient())
}

// skim drops everything in the pipe. Its errors are those of copyFrom.
func (t *tap) skim(pipe int) error {
	if !t.wide {
		t.wide = true
		_, _ = unix.FcntlInt(uintptr(pipe), unix.F_SETPIPE_SZ, skimPipe) // if it may not grow, the container blocks earlier
	}
	null, err := devNull()
	if err != nil {
		return err
	}
	taken := 0
	for taken < skimPipe {
		var n int
		if n, err = move(pipe, null, skimPipe-taken); n == 0 {
			break
		}
		taken += n
	}
	switch {
	case taken == 0 && err == nil:
		return io.EOF
	case taken == 0:
		return err
	}
	// The current line has lost its rest. Drop its beginning, too.
	if t.kept > 0 {
		drop(t.rest.read, t.kept)
	}
	t.log.skip(t.stream, taken+len(t.lines.pending))
	t.lines.pending, t.kept, t.failed = nil, 0, false
	t.torn, t.skimmed = true, true
	return nil
}

// resync drops the rest of a line whose beginning was skimmed. It returns the remaining data, and
// whether the pipe must be read again.
func (t *tap) resync(pipe int, data []byte, taken bool) (rest []byte, again bool) {
	if !t.torn {
		return data, false
	}
	end := bytes.IndexByte(data, '\n') + 1
	if end == 0 {
		end = len(data)
	} else {
		t.torn = false
	}
	t.log.skip(t.stream, end)
	if !taken {
		drop(pipe, end)
		return nil, true
	}
	return data[end:], end == len(data)
}
