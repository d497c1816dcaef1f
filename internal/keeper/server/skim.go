package server

import (
	"bytes"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// A container whose log has used up its rate is skimmed: what it prints is taken out of its pipe by the kernel, unread, and
// not at each write but every skimPause. So a container that prints as fast as it can costs the keeper little. The pipe is
// made large enough that the container seldom waits meanwhile.
const (
	skimPause = 50 * time.Millisecond
	skimPipe  = 256 << 10 // bytes
	skimUntil = 2 * pieceMax
)

// starved reports whether output is to be dropped unread: something was dropped, and not enough of the rate has come back
// to be worth reading.
func (l *logFile) starved(now time.Time) bool {
	if l.limits.rate <= 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	a := &l.allowed
	return a.bytes > 0 && a.at.Add(a.wait(min(float64(l.limits.rate)*rateBurst/2, skimUntil), l.limits.rate)).After(now)
}

// pauseSkimming returns when it is time to skim again. All containers have the same times: the keeper is woken once for all.
func pauseSkimming() {
	time.Sleep(skimPause - time.Duration(time.Now().UnixNano())%skimPause)
}

// wait returns how long after its last use the bucket has n bytes.
func (a *allowance) wait(n float64, rate int64) time.Duration {
	return time.Duration(max(0, n-a.left) / float64(rate) * float64(time.Second))
}

// skip counts output that is dropped unread: its lines are not known.
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

// skims reports whether the output is skimmed now. Who is attached gets all of it.
func (t *tap) skims() bool {
	return t.transit == nil && t.log.starved(time.Now()) && (t.unheard == nil || t.unheard())
}

// skim drops all that is in the pipe. The errors are those of copyFrom.
func (t *tap) skim(pipe int) error {
	if !t.wide {
		t.wide = true
		unix.FcntlInt(uintptr(pipe), unix.F_SETPIPE_SZ, skimPipe) // where it may not grow the container waits sooner
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
	// The line that has begun has lost its rest: it is dropped, too.
	if t.kept > 0 {
		drop(t.rest.read, t.kept)
	}
	t.log.skip(t.stream, taken+len(t.lines.pending))
	t.lines.pending, t.kept, t.failed = nil, 0, false
	t.torn, t.skimmed = true, true
	return nil
}

// resync drops the rest of a line whose beginning was skimmed. It returns what is left of data, and whether the pipe has
// to be looked at anew.
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
