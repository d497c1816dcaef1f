package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// A caller waits while all decoders are in use, and can give up.
func TestDecodersAreBounded(t *testing.T) {
	d := newDecoders(true)
	plain := bytes.Repeat([]byte("layer"), 1000)
	var packed bytes.Buffer
	w, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	open := func(ctx context.Context) (io.ReadCloser, error) {
		return d.decompress(ctx, bytes.NewReader(packed.Bytes()))
	}
	var held []io.ReadCloser
	for range cap(d.usual) {
		r, err := open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, r)
	}
	impatient, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := open(impatient); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("one more than there are: %v", err)
	}
	d.drop() // does not close a decoder in use
	for _, r := range held {
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		r.Close()
	}
	d.drop()
	for range 2 * cap(d.usual) { // used and dropped ones
		r, err := open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		r.Close()
	}
}

// A layer with many files needs few descriptors, even if the files are empty and reached through a
// symlink, which makes them be written one by one.
func TestDescriptorsAreFew(t *testing.T) {
	needRoot(t)
	entries := []ent{dir("usr"), symlink("alias", "usr")}
	for n := range 1000 {
		entries = append(entries, reg(fmt.Sprint("alias/", n), ""))
	}
	body := tarOf(t, entries...)
	s := openStore(t, t.TempDir())
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &was)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 400, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	if err := s.Unpack(t.Context(), blobOf(body, body)); err != nil {
		t.Error(err)
	}
}
