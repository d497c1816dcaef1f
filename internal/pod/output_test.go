package pod

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"time"
)

func joined(pieces []*Piece) []byte {
	var all []byte
	for _, p := range pieces {
		all = append(all, p.Bytes...)
	}
	return all
}

func TestAnOutputIsKeptUpToItsLimit(t *testing.T) {
	var all outputs
	out := all.begin(t.Context())
	want := bytes.Repeat([]byte("0123456789abcde\n"), execLimit/16)
	for rest := append(bytes.Clone(want), "more"...); len(rest) > 0; {
		n, err := out.stdout.Write(rest[:min(len(rest), 30000)])
		if err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	out.stderr.Write([]byte("a word"))
	out.end()
	if got := joined(out.stdout.pieces); !bytes.Equal(got, want) {
		t.Errorf("%d bytes are kept of stdout", len(got))
	}
	if got := joined(out.stderr.pieces); string(got) != "a word" {
		t.Errorf("stderr: %q", got)
	}
	if all.used != execLimit+firstPiece {
		t.Errorf("%d bytes are in use", all.used)
	}
	out.discard()
	if all.used != 0 || all.turn != nil {
		t.Errorf("%d bytes are in use, turn %v", all.used, all.turn)
	}
}

// An answer of both streams fits into the message that a kubelet receives, and a short stream is
// kept whole.
func TestAnAnswerIsKeptUpToItsLimit(t *testing.T) {
	for _, test := range []struct{ stdout, stderr, keepsOut, keepsErr int }{
		{0, 0, 0, 0},
		{5, 7, 5, 7},
		{execLimit, 0, answerLimit, 0},
		{0, execLimit + 1, 0, answerLimit},
		{execLimit, 100, answerLimit - 100, 100},
		{100, execLimit, 100, answerLimit - 100},
		{execLimit, execLimit, answerLimit / 2, answerLimit / 2},
		{answerLimit - 5, 5, answerLimit - 5, 5},
	} {
		var all outputs
		out := all.begin(t.Context())
		want := []byte("0123456789abcdef")
		for k, size := range map[*streamHead]int{&out.stdout: test.stdout, &out.stderr: test.stderr} {
			if _, err := k.Write(bytes.Repeat(want, size/16+1)[:size]); err != nil {
				t.Fatal(err)
			}
		}
		out.end()
		out.fit()
		stdout, stderr := joined(out.stdout.pieces), joined(out.stderr.pieces)
		if len(stdout) != test.keepsOut || len(stderr) != test.keepsErr {
			t.Errorf("%+v: %d and %d bytes are kept", test, len(stdout), len(stderr))
		}
		if !bytes.Equal(stdout, bytes.Repeat(want, execLimit/16)[:len(stdout)]) {
			t.Errorf("%+v: it is not the beginning that is kept", test)
		}
		if all.used > len(stdout)+len(stderr)+2*laterPiece {
			t.Errorf("%+v: %d bytes are in use", test, all.used)
		}
		if out.discard(); all.used != 0 {
			t.Errorf("%+v: %d bytes are in use after all", test, all.used)
		}
	}
}

// Thirty commands that each print up to the limit on both streams finish within the bound.
func TestOutputsShareOneMemory(t *testing.T) {
	var all outputs
	block := make([]byte, 32<<10)
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			out := all.begin(t.Context())
			for range execLimit / len(block) {
				for _, k := range []*streamHead{&out.stdout, &out.stderr} {
					if _, err := k.Write(block); err != nil {
						t.Error(err)
					}
				}
			}
			out.end()
			out.discard()
		})
	}
	wg.Wait()
	if all.used != 0 || all.turn != nil || all.peak > outputShared+outputMost || all.peak < outputShared {
		t.Errorf("in use: %d, at most %d", all.used, all.peak)
	}
	// And the memory is returned after a while without use.
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		all.mu.Lock()
		spare := len(all.spare)
		all.mu.Unlock()
		if spare == 0 {
			break
		}
		if time.Since(begin) > 20*outputQuiet {
			t.Fatalf("%d pieces are kept", spare)
		}
	}
}

// fill takes all output memory.
func fill(t *testing.T, all *outputs) *output {
	t.Helper()
	out := all.begin(t.Context())
	for _, k := range []*streamHead{&out.stdout, &out.stderr} {
		if _, err := k.Write(make([]byte, execLimit)); err != nil {
			t.Fatal(err)
		}
	}
	for all.turn == nil { // and takes the turn
		if _, err := all.begin(t.Context()).stdout.Write(make([]byte, firstPiece)); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestAnOutputWaitsForMemoryAndGivesUpWithItsCommand(t *testing.T) {
	var all outputs
	full := fill(t, &all)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errTimeout)
	defer cancel()
	if _, err := all.begin(ctx).stdout.Write([]byte("x")); !errors.Is(err, errTimeout) {
		t.Errorf("without memory: %v", err)
	}
	time.AfterFunc(50*time.Millisecond, full.discard)
	if _, err := all.begin(t.Context()).stdout.Write([]byte("x")); err != nil {
		t.Errorf("when memory comes back: %v", err)
	}
}

// The pieces of an answer whose connection broke are never freed. Their memory must be counted as free once they are
// collected.
func TestMemoryThatIsLostIsFoundAgain(t *testing.T) {
	var all outputs
	all.begin(t.Context()).stdout.Write(make([]byte, 1<<20))
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		runtime.GC()
		all.mu.Lock()
		used := all.used
		all.mu.Unlock()
		if used == 0 {
			return
		}
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%d bytes are in use", used)
		}
	}
}
