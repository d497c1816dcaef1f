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

// logLimits limits the log of a container. The zero value is no limit.
type logLimits struct {
	size  int64 // maximum size of the file in bytes; it is rotated before it exceeds that
	files int   // number of rotated files to keep; the oldest are removed
	rate  int64 // bytes per second in the long run; output above it is dropped, which the log reports
}

func limitsOf(req *api.CreateRequest) logLimits {
	return logLimits{size: req.LogMaxBytes, files: int(req.LogMaxFiles), rate: req.LogRateBytes}
}

// rateBurst is how many seconds of the rate may be used at once.
const rateBurst = 10

// allowance is a token bucket of bytes. The zero value is full at its first use.
type allowance struct {
	left float64
	at   time.Time

	bytes, lines uint64 // dropped since the last entry that was written
	unread       bool   // more lines were dropped, but not counted; see skim
}

// take reports whether n bytes may be written now, and takes them if so.
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

// line is the state of the log within a line of a stream.
type line struct {
	open bool // the last entry is partial
	cut  bool // the rest of its line was dropped
}

var streams = [...]string{"stdout", "stderr"}

// limited returns the entries to write: none if the log's rate is used up. Before the first entries
// after a gap it inserts a note about the dropped output. The lock must be held.
func (l *logFile) limited(stream string, entries []byte, partial bool) []byte {
	at := &l.lines[slices.Index(streams[:], stream)]
	if l.limits.rate > 0 && !l.allowed.take(len(entries), l.limits.rate, time.Now()) {
		l.allowed.bytes += uint64(len(entries))
		l.allowed.lines += uint64(bytes.Count(entries, []byte("\n")))
		at.cut = at.open
		return nil
	}
	if note := l.dropNotice(); len(note) > 0 {
		entries = append(note, entries...)
	}
	at.open = partial
	return entries
}

// dropNotice returns an entry that reports the output dropped since the last one, or nothing if
// none was. It ends lines whose rest was dropped. If possible it uses a stream that is not within
// a line, because otherwise the entry would become part of that line.
func (l *logFile) dropNotice() []byte {
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

// rotatedName is the suffix of a rotated log. It is that of a kubelet, with nanoseconds added so
// that two rotations can happen in one second.
const rotatedName = ".20060102-150405.000000000"

// rotated makes room for n more bytes. A file that would exceed its size is renamed and created
// again; a kubelet that follows the log supports that. If the rotation fails, the file keeps
// growing, because output matters more than the limit. The lock must be held.
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

// prune removes the oldest rotated files beyond the limit, including those of a kubelet.
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

// globEscape escapes the special characters of filepath.Glob.
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
