package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// logLimits bound what a container writes to its log. The zero value does not.
type logLimits struct {
	size  int64 // bytes that the file may have; before it grows beyond, it is rotated
	files int   // rotated files that are kept beside it; the oldest go
	rate  int64 // bytes a second in the long run; what is above is dropped and said in the log
}

func limitsOf(req *api.CreateRequest) logLimits {
	return logLimits{size: req.LogMaxBytes, files: int(req.LogMaxFiles), rate: req.LogRateBytes}
}

// rateBurst is for how many seconds the rate may be used at once.
const rateBurst = 10

// allowance is a token bucket of bytes. The zero value is full at its first use.
type allowance struct {
	left float64
	at   time.Time

	bytes, lines uint64 // dropped since the last that was let through
	unread       bool   // more lines were, which nobody has counted; see skim
}

// take tells whether n bytes may be written now.
func (a *allowance) take(n int, rate int64, now time.Time) bool {
	most := float64(rate) * rateBurst
	if a.at.IsZero() {
		a.left = most
	} else {
		a.left = min(most, a.left+now.Sub(a.at).Seconds()*float64(rate))
	}
	a.at = now
	if a.left < float64(n) {
		return false
	}
	a.left -= float64(n)
	return true
}

// line is how far the log has come in the line of a stream.
type line struct {
	open bool // the last entry is partial
	cut  bool // what followed that entry was dropped
}

var streams = [...]string{"stdout", "stderr"}

// limited returns what is to be written of entries: nothing when the log's rate is used up, and a note about what was
// dropped before the first entry that is let through again. The lock is held.
func (l *logFile) limited(stream string, entries []byte, partial bool) []byte {
	at := &l.lines[slices.Index(streams[:], stream)]
	if l.limits.rate > 0 && !l.allowed.take(len(entries), l.limits.rate, time.Now()) {
		l.allowed.bytes += uint64(len(entries))
		l.allowed.lines += uint64(bytes.Count(entries, []byte("\n")))
		at.cut = at.open
		return nil
	}
	if note := l.confession(); len(note) > 0 {
		entries = append(note, entries...)
	}
	at.open = partial
	return entries
}

// confession is an entry that tells what was dropped since the last one, empty when nothing was. It ends the lines whose
// rest was dropped, and goes to a stream whose line has ended, if there is one: else it would become part of a line.
func (l *logFile) confession() []byte {
	if l.allowed.bytes == 0 {
		return nil
	}
	var out []byte
	entry := func(stream, text string) {
		out = time.Now().UTC().AppendFormat(out, time.RFC3339Nano)
		out = fmt.Appendf(out, " %s F %s\n", stream, text)
	}
	for i, stream := range streams {
		if l.lines[i].cut {
			entry(stream, "")
			l.lines[i] = line{}
		}
	}
	to := "stderr"
	if l.lines[1].open && !l.lines[0].open {
		to = "stdout"
	}
	what := fmt.Sprintf("%d lines (%d bytes)", l.allowed.lines, l.allowed.bytes)
	if l.allowed.unread {
		what = fmt.Sprintf("%d bytes", l.allowed.bytes)
	}
	entry(to, fmt.Sprintf("[kuri] %s were dropped: this container may log %d bytes a second", what, l.limits.rate))
	l.allowed.bytes, l.allowed.lines, l.allowed.unread = 0, 0, false
	return out
}

// rotatedName is how a rotated log is called, after the log's own name: as a kubelet calls those that it rotates, but that
// two can be of one second.
const rotatedName = ".20060102-150405.000000000"

// rotated makes room for n more bytes: a file that would grow beyond its size is renamed and made anew, which a kubelet
// that follows it understands. When that fails it goes on growing, for output is worth more than a limit. The lock is
// held.
func (l *logFile) rotated(n int) {
	if l.limits.size <= 0 || l.written == 0 || l.written+int64(n) <= l.limits.size {
		return
	}
	var f *os.File
	err := l.within(func(log string) error {
		if err := os.Rename(log, log+time.Now().UTC().Format(rotatedName)); err != nil {
			return err
		}
		var err error
		if f, err = l.openAt(log); err == nil {
			l.prune(log)
		}
		return err
	})
	if err != nil {
		slog.Error("a log cannot be rotated", "log", l.path, "err", err)
		return
	}
	l.file.Close()
	l.file, l.torn, l.written = f, false, 0
}

// prune removes the oldest rotated files beyond those that are kept, a kubelet's among them.
func (l *logFile) prune(log string) {
	all, err := filepath.Glob(globEscape(log) + ".[0-9]*")
	if err != nil {
		return
	}
	slices.Sort(all)
	for len(all) > max(l.limits.files, 0) {
		if err := os.Remove(all[0]); err != nil {
			slog.Error("a rotated log cannot be removed", "log", l.path, "err", err)
		}
		all = all[1:]
	}
}

// globEscape takes the meaning from the characters that filepath.Glob knows.
func globEscape(path string) string {
	var out []rune
	for _, r := range path {
		if slices.Contains([]rune(`*?[\`), r) {
			out = append(out, '\\')
		}
		out = append(out, r)
	}
	return string(out)
}
