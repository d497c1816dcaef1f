package stream

import (
	"context"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

func TestParseKeys(t *testing.T) {
	for in, want := range map[string]string{"": "", "ctrl-p,ctrl-q": "\x10\x11", "ctrl-]": "\x1d", "CTRL-A,d": "\x01d",
		"ctrl-@": "\x00", "~,.": "~."} {
		if got, err := ParseKeys(in); err != nil || string(got) != want {
			t.Errorf("%q: %q %v", in, got, err)
		}
	}
	for _, in := range []string{",", "ctrl-", "ctrl-pp", "ctrl-1", "ab", "a,,b"} {
		if _, err := ParseKeys(in); err == nil {
			t.Errorf("%q is taken", in)
		}
	}
}

// Keys that begin the sequence but do not complete it are passed on in order, in whatever pieces they arrive.
func TestKeyWatch(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "": "", "\x10": "\x10", "a\x10b": "a\x10b", "\x10\x10x": "\x10\x10x", "\x11\x10": "\x11\x10",
	} {
		for _, r := range []io.Reader{strings.NewReader(in), iotest.OneByteReader(strings.NewReader(in))} {
			k := &keyWatch{in: r, keys: []byte("\x10\x11"), detach: func() { t.Errorf("%q detaches", in) }}
			if got, err := io.ReadAll(iotest.OneByteReader(k)); err != nil || string(got) != want {
				t.Errorf("%q: %q %v", in, got, err)
			}
		}
	}
	detached := make(chan struct{})
	k := &keyWatch{in: iotest.OneByteReader(strings.NewReader("x\x10\x10\x11y")), keys: []byte("\x10\x11"),
		detach: func() { close(detached) }}
	go io.ReadAll(k) // never returns
	<-detached
}

func TestExecCodes(t *testing.T) {
	for text, want := range map[string]int{
		`exec: "nosuch": executable file not found in the container`:                                                                        127,
		"OCI runtime exec failed: exec failed: unable to start container process: exec: \"x\": executable file not found in $PATH: unknown": 127,
		`exec failed: unable to start container process: exec: "/x": stat /x: no such file or directory`:                                    127,
		"crun: executable file `x` not found in $PATH: No such file or directory":                                                           127,
		`exec: "/tmp": find the program: is a directory`:                                                                                    126,
		`exec: "/etc/passwd": find the program: permission denied`:                                                                          126,
		`exec: "/x": exec format error`:                                                                                                     126,
		`exec in container c: exec: "ls": the container's working directory /w is gone, make it anew (no such file or directory)`:           126,
		`exec failed: unable to start container process: chdir to cwd ("/w") set in config.json failed: no such file or directory`:          126,
		"working directory /gone: no such file or directory":                                                                                1,
		"the connection broke": 1,
	} {
		c, _, _ := clitest.New(nil)
		if got := c.Exit(context.Background(), NotRun(errors.New(text))); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
	if err := Annotate("exec in web",
		errors.New("Internal error occurred: error executing command in container: why")); err.Error() != "exec in web: why" {
		t.Error(err)
	}
}

// The error for a streaming server that does not answer has its address once, and not the secret of its URL.
func TestStreamingError(t *testing.T) {
	u, err := url.Parse("http://127.0.0.1:39593/exec/secret")
	if err != nil {
		t.Fatal(err)
	}
	got := streamingError(u, errors.New(`error sending request: Post "http://127.0.0.1:39593/exec/secret": dial tcp 127.0.0.1:39593: connect: connection refused`))
	if want := "reach the runtime's streaming server at 127.0.0.1:39593: connection refused"; got.Error() != want {
		t.Errorf("%q, want %q", got, want)
	}
}
