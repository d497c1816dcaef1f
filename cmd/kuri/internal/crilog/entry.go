package crilog

import (
	"bytes"
	"fmt"
	"time"
)

// Stream is an output stream of a container.
type Stream string

// The streams, as written in a log file.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// Entry is one line of a log file.
type Entry struct {
	Time    time.Time // zero for a line in another format
	Stream  Stream
	Partial bool   // the program's line continues in the stream's next entry
	Text    []byte // without the newline; valid until the next entry
}

// Parse parses one line without its newline. The entry's Text refers to line.
func Parse(line []byte) (Entry, error) {
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return Entry{}, fmt.Errorf("log line has no stream")
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return Entry{}, fmt.Errorf("log line: %w", err)
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if s := Stream(stream); !ok || s != Stdout && s != Stderr {
		return Entry{}, fmt.Errorf("log line of stream %.10q", stream)
	}
	tags, text, _ := bytes.Cut(rest, []byte{' '}) // an empty line may end after its tag
	tag, _, _ := bytes.Cut(tags, []byte{':'})     // future tags may follow, separated by colons
	if len(tag) != 1 || tag[0] != 'P' && tag[0] != 'F' {
		return Entry{}, fmt.Errorf("log line with tag %.10q", tag)
	}
	return Entry{Time: t, Stream: Stream(stream), Partial: tag[0] == 'P', Text: text}, nil
}
