//go:build !lean

package profile

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// take is a profile of this process, through a pipe.
func take(t *testing.T, r Request) ([]byte, error) {
	var out bytes.Buffer
	err := Receive(t.Context(), &out, r, func(path string) error {
		finish, err := Begin(r, path)
		if err != nil {
			return err
		}
		return finish(t.Context())
	})
	return out.Bytes(), err
}

func TestProfiles(t *testing.T) {
	for _, name := range All {
		got, err := take(t, Request{Name: name, Seconds: 1})
		if err != nil || len(got) < 16 {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
			continue
		}
		if !bytes.HasPrefix(got, []byte{0x1f, 0x8b}) {
			t.Errorf("%s begins with %q", name, got[:16])
		}
	}
	stacks, err := take(t, Request{Name: "goroutine", Seconds: 1, Debug: 2})
	if err != nil || !strings.Contains(string(stacks), "TestProfiles") {
		t.Errorf("%s, %v", stacks, err)
	}
}

// A quiet process samples its memory while a profile is taken, and no longer.
func TestMemoryOfAQuietProcess(t *testing.T) {
	before := runtime.MemProfileRate
	t.Cleanup(func() { runtime.MemProfileRate = before })
	Quiet()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				wasteful()
			}
		}
	}()
	got, err := take(t, Request{Name: "allocs", Seconds: 1, Debug: 1})
	close(stop)
	<-done
	if err != nil || !strings.Contains(string(got), "profile.wasteful") {
		t.Errorf("%v: the profile does not name what allocates: %s", err, got)
	}
	if runtime.MemProfileRate != 0 {
		t.Errorf("memory is sampled every %d bytes afterwards", runtime.MemProfileRate)
	}
}

var waste []byte

//go:noinline
func wasteful() { waste = make([]byte, 64<<10) }

func TestWhatIsNoProfile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, r := range []Request{{Name: "heat", Seconds: 1}, {Name: "heap"}, {Name: "heap", Seconds: 601},
		{Name: "heap", Seconds: 1, Debug: 3}} {
		if _, err := take(t, r); !errors.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, path := range []string{file, filepath.Join(t.TempDir(), "none"), "/proc/self/fd/100000"} {
		if _, err := Begin(Request{Name: "heap", Seconds: 1}, path); !errors.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if left, err := os.ReadFile(file); string(left) != "keep" {
		t.Errorf("the file has %q, %v", left, err)
	}
}

// One profile is taken at once; the second caller is told so, and the first one's goes on.
func TestOneProfileAtOnce(t *testing.T) {
	var out bytes.Buffer
	r := Request{Name: "profile", Seconds: 600}
	err := Receive(t.Context(), &out, r, func(path string) error {
		finish, err := Begin(r, path)
		if err != nil {
			return err
		}
		if _, err := take(t, Request{Name: "heap", Seconds: 1}); !errors.Is(err, fault.Unavailable) {
			t.Errorf("a second one: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // who asked waits no longer
		return finish(ctx)
	})
	if err != nil || !bytes.HasPrefix(out.Bytes(), []byte{0x1f, 0x8b}) {
		t.Errorf("%d bytes, %v", out.Len(), err)
	}
	if _, err := take(t, Request{Name: "heap", Seconds: 1}); err != nil {
		t.Error(err)
	}
}

// A profile that nobody waits for any more is ended.
func TestAProfileThatIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	r := Request{Name: "profile", Seconds: 600}
	err := Receive(ctx, &bytes.Buffer{}, r, func(path string) error {
		finish, err := Begin(r, path)
		if err != nil {
			return err
		}
		go func() { ended <- finish(t.Context()) }()
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("the reader: %v", err)
	}
	select {
	case <-ended: // the CPU profile's writer keeps its error to itself
	case <-time.After(time.Minute):
		t.Fatal("it is being taken still")
	}
	if _, err := take(t, Request{Name: "heap", Seconds: 1}); err != nil {
		t.Error(err)
	}
}
