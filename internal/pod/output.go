package pod

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// The memory of ExecSync's outputs, in bytes. All commands share outputShared. When that is full, one command at a time
// may continue up to its own limit. So at least one command can always finish, and the memory in use never exceeds the
// sum.
const (
	outputShared = 32 << 20
	outputMost   = 2 * execLimit // of one command
)

// Sizes of the pieces of an output, in bytes. The first one is small: most commands print a line.
const (
	firstPiece = 4 << 10
	laterPiece = 64 << 10
)

// outputQuiet is how long all output memory must be unused before it is returned to the kernel.
const outputQuiet = time.Second

// outputs bounds the memory of all outputs together. It is safe for concurrent use.
type outputs struct {
	mu      sync.Mutex
	used    int             // bytes in use
	peak    int             // maximum of used since memory was last returned to the kernel
	turn    *account        // may exceed outputShared, until its memory is freed
	waiting []chan struct{} // closed to wake a waiter
	spare   []*[]byte       // free memory of laterPiece bytes each
	idle    *time.Timer
}

// account counts the memory of one command's output. It has no reference to a piece, so that a lost piece can be
// collected.
type account struct {
	all     *outputs
	ctx     context.Context // of the command; ends the wait for memory
	held    int             // bytes; guarded by all.mu
	writing bool            // guarded by all.mu
}

// output is the output of one command. Only one goroutine at a time may write to each of its streams.
type output struct {
	*account
	stdout, stderr streamHead
}

// streamHead is the beginning of one stream.
type streamHead struct {
	account *account
	pieces  []*Piece
	left    int // bytes until the limit of the stream
}

// Piece is a part of an output. Its memory is in use until Free, which must be called once.
type Piece struct {
	Bytes   []byte
	backing *[]byte
	account *account
	cleanup runtime.Cleanup
}

func (o *outputs) begin(ctx context.Context) *output {
	a := &account{all: o, ctx: ctx, writing: true}
	return &output{a, streamHead{account: a, left: execLimit}, streamHead{account: a, left: execLimit}}
}

// Write keeps the bytes below the limit and drops the rest. It waits while the memory of all outputs is in use; so does
// the command once its pipe is full.
func (k *streamHead) Write(b []byte) (int, error) {
	rest := b[:min(len(b), k.left)]
	for len(rest) > 0 {
		last := k.last()
		if last == nil || len(last.Bytes) == cap(last.Bytes) {
			piece, err := k.account.take(k.size())
			if err != nil {
				return len(b) - len(rest), err
			}
			k.pieces = append(k.pieces, piece)
			last = piece
		}
		n := copy(last.Bytes[len(last.Bytes):cap(last.Bytes)], rest)
		last.Bytes = last.Bytes[:len(last.Bytes)+n]
		rest, k.left = rest[n:], k.left-n
	}
	return len(b), nil
}

func (k *streamHead) last() *Piece {
	if len(k.pieces) == 0 {
		return nil
	}
	return k.pieces[len(k.pieces)-1]
}

func (k *streamHead) size() int {
	if len(k.pieces) == 0 {
		return firstPiece
	}
	return min(laterPiece, execLimit-firstPiece-(len(k.pieces)-1)*laterPiece)
}

// take returns an empty piece, as soon as there is memory for it. After execWaitLimit the error is of kind Exhausted.
func (a *account) take(size int) (*Piece, error) {
	o := a.all
	limit := time.NewTimer(execWaitLimit)
	defer limit.Stop()
	collect := time.NewTimer(outputQuiet)
	defer collect.Stop()
	for {
		wait, piece := o.tryTake(a, size)
		if piece != nil {
			return piece, nil
		}
		select {
		case <-wait:
		case <-collect.C:
			// The pieces of an answer whose connection broke are freed by the garbage collector.
			go runtime.GC()
		case <-a.ctx.Done():
			return nil, context.Cause(a.ctx)
		case <-limit.C:
			return nil, fault.New(fault.Exhausted, "the outputs of other ExecSyncs take the %d MiB that there are for all, and none was given back within %s; "+
				"print less, or run fewer at once", (outputShared+outputMost)>>20, execWaitLimit)
		}
	}
}

// tryTake returns a piece, or a channel that is closed when there may be memory.
func (o *outputs) tryTake(a *account, size int) (<-chan struct{}, *Piece) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.turn == nil && o.used+size > outputShared {
		o.turn = a
	}
	if o.turn != a && o.used+size > outputShared {
		wait := make(chan struct{})
		o.waiting = append(o.waiting, wait)
		return wait, nil
	}
	o.used += size
	o.peak = max(o.peak, o.used)
	a.held += size
	backing := o.backing(size)
	p := &Piece{Bytes: (*backing)[:0:size], backing: backing, account: a}
	p.cleanup = runtime.AddCleanup(p, func(size int) { o.giveBack(a, size, nil) }, size)
	return nil, p
}

// backing returns memory for a piece. It reuses free memory of the right size.
func (o *outputs) backing(size int) *[]byte {
	if n := len(o.spare); n > 0 && size == laterPiece {
		b := o.spare[n-1]
		o.spare = o.spare[:n-1]
		return b
	}
	b := make([]byte, size)
	return &b
}

// Free releases the piece's memory.
func (p *Piece) Free() {
	p.cleanup.Stop()
	p.account.all.giveBack(p.account, cap(p.Bytes), p.backing)
}

func (o *outputs) giveBack(a *account, size int, backing *[]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.used -= size
	a.held -= size
	if backing != nil && size == laterPiece {
		o.spare = append(o.spare, backing)
	}
	o.pass(a)
	if o.used == 0 {
		o.rest()
	}
}

// end marks the output as complete.
func (a *account) end() {
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	a.writing = false
	a.all.pass(a)
}

// pass ends the turn if a has it and no longer needs it, and wakes the waiters.
func (o *outputs) pass(a *account) {
	if o.turn == a && !a.writing && a.held == 0 {
		o.turn = nil
	}
	if o.turn != nil && o.used+laterPiece > outputShared {
		return
	}
	for _, w := range o.waiting {
		close(w)
	}
	o.waiting = nil
}

// rest returns the memory to the kernel after outputQuiet without use. The Go runtime by itself would keep the pages
// for minutes.
func (o *outputs) rest() {
	if o.peak < 8*laterPiece {
		return // it is not worth a collection
	}
	if o.idle != nil {
		o.idle.Reset(outputQuiet)
		return
	}
	o.idle = time.AfterFunc(outputQuiet, func() {
		o.mu.Lock()
		quiet := o.used == 0
		if quiet {
			o.spare, o.peak = nil, 0
		}
		o.mu.Unlock()
		if quiet {
			debug.FreeOSMemory()
		}
	})
}

// fit cuts the ends of the streams so that both together have at most answerLimit bytes. Each may
// have at least half.
func (out *output) fit() {
	stdout, stderr := execLimit-out.stdout.left, execLimit-out.stderr.left
	out.stdout.cut(max(answerLimit-stderr, answerLimit/2))
	out.stderr.cut(max(answerLimit-stdout, answerLimit/2))
}

// cut frees everything after the first keep bytes.
func (k *streamHead) cut(keep int) {
	for i, p := range k.pieces {
		if keep == 0 {
			for _, rest := range k.pieces[i:] {
				rest.Free()
			}
			k.pieces = k.pieces[:i]
			return
		}
		p.Bytes = p.Bytes[:min(len(p.Bytes), keep)]
		keep -= len(p.Bytes)
	}
}

// discard frees all pieces, because no one will read them.
func (out *output) discard() {
	for _, k := range []*streamHead{&out.stdout, &out.stderr} {
		for _, p := range k.pieces {
			p.Free()
		}
		k.pieces = nil
	}
}
