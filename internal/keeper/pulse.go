package keeper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/process"
)

// A call may take any time, so a slow call does not mean that the keeper hangs. While a call waits,
// the keeper is pinged with Info; a keeper that does not answer hangs. A stopped process
// (signal(7)) is recognised by its state.
const (
	firstBeat = time.Second      // after the start of a call
	nextBeat  = 5 * time.Second  // after the last answer
	beatLimit = 10 * time.Second // to answer
	startBeat = 5 * time.Second  // to answer the first time, for a keeper that was already running
	hungBeat  = 200 * time.Millisecond
)

// pulse tracks whether the keeper answers. It is safe for concurrent use.
type pulse struct {
	mu      sync.Mutex // guards all below
	pid     int        // of the keeper, 0 before its first answer
	hung    bool       // it did not answer the last ping
	waiting map[*context.CancelCauseFunc]struct{}

	replaced uint64 // number of times that a new keeper has answered
	lost     uint64 // number of times that events were lost

	timer *time.Timer // nil if no call waits
}

// Ready returns nil if the keeper answers within limit, else an error of kind Unavailable that
// describes its state. For a keeper that is known to hang it returns at once.
func (c *Client) Ready(ctx context.Context, limit time.Duration) error {
	c.pulse.mu.Lock()
	pid, hung := c.pulse.pid, c.pulse.hung
	c.pulse.mu.Unlock()
	if pid == 0 {
		pid = c.lockedBy()
	}
	if st := stateOf(pid); st.stopped() {
		return c.hangs(pid, st)
	}
	if hung {
		limit = min(limit, hungBeat)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, err := c.Info(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return c.hangs(pid, stateOf(pid))
	}
	return err
}

// lockedBy returns the pid of the keeper that has locked the state directory, 0 for none.
func (c *Client) lockedBy() int {
	body, _ := os.ReadFile(filepath.Join(filepath.Dir(c.socket), "keeper", "lock"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(body)))
	if process.Name(pid) != "kuri-keeper" {
		return 0 // it has died
	}
	return pid
}

// hangs records that the keeper does not answer, closes the connection so that waiting calls end,
// and returns the error.
func (c *Client) hangs(pid int, st state) error {
	c.pulse.mu.Lock()
	already := c.pulse.hung
	c.pulse.hung = true
	c.pulse.mu.Unlock()
	if !already {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.conn != nil {
			c.conn.Close()
			c.conn = nil
		}
	}
	switch {
	case pid == 0:
		return &Hung{fmt.Sprintf("the keeper at %s does not answer; containers keep running, but nothing can be started or stopped; restart kurid", c.socket)}
	case st.stopped():
		return &Hung{fmt.Sprintf("the keeper, process %d at %s, is stopped and does not answer; continue it with kill -CONT %[1]d", pid, c.socket)}
	}
	return &Hung{fmt.Sprintf("the keeper, process %d at %s, does not answer: its state is %s; containers keep running, but nothing can be started or stopped; kill -9 %[1]d makes another keeper take over", pid, c.socket, st)}
}

// Hung is the error for a keeper that runs but does not answer. Its kind is Unavailable.
type Hung struct{ text string }

func (h *Hung) Error() string { return h.text }

// Unwrap returns the error's kind.
func (h *Hung) Unwrap() error { return fault.Unavailable }

// Losses returns how often the keeper was replaced and how often events were lost since this client was created.
func (c *Client) Losses() (replaced, events uint64) {
	c.pulse.mu.Lock()
	defer c.pulse.mu.Unlock()
	return c.pulse.replaced, c.pulse.lost
}

// answered records an answer to a ping.
func (p *pulse) answered(info *api.InfoResponse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid != 0 && p.pid != int(info.Pid) {
		p.replaced++
	}
	p.pid, p.hung = int(info.Pid), false
}

// watched returns a context that ends, with a [Hung] as its cause, if the keeper hangs before done
// is called. If the keeper is already known to hang, it returns a Hung.
func (c *Client) watched(ctx context.Context) (_ context.Context, done func(), err error) {
	p := &c.pulse
	p.mu.Lock()
	hung := p.hung
	p.mu.Unlock()
	if hung {
		if err := c.Ready(ctx, hungBeat); err != nil {
			return nil, nil, err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == nil {
		p.waiting = make(map[*context.CancelCauseFunc]struct{})
	}
	p.waiting[&cancel] = struct{}{}
	if p.timer == nil {
		p.timer = time.AfterFunc(firstBeat, c.beat)
	}
	return ctx, func() {
		cancel(nil)
		p.mu.Lock()
		defer p.mu.Unlock()
		if delete(p.waiting, &cancel); len(p.waiting) == 0 && p.timer != nil {
			p.timer.Stop()
			p.timer = nil
		}
	}, nil
}

// beat pings the keeper, and ends the waiting calls if it does not answer.
func (c *Client) beat() {
	err := c.Ready(context.Background(), beatLimit)
	p := &c.pulse
	p.mu.Lock()
	defer p.mu.Unlock()
	if hung := (*Hung)(nil); errors.As(err, &hung) {
		for cancel := range p.waiting {
			(*cancel)(hung)
		}
		clear(p.waiting)
	}
	p.timer = nil
	if len(p.waiting) > 0 {
		p.timer = time.AfterFunc(nextBeat, c.beat)
	}
}

// state is a process's state as in /proc/PID/status, a letter and a word.
type state string

func stateOf(pid int) state {
	if pid == 0 {
		return "unknown"
	}
	return state(cmp.Or(process.State(pid), "gone"))
}

func (s state) stopped() bool {
	return strings.HasPrefix(string(s), "T") || strings.HasPrefix(string(s), "t")
}
