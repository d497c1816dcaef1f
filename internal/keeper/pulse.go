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

// Calls take as long as they take, so no limit on one says that the keeper hangs. While one waits, the keeper is asked who
// it is now and then: not to answer that is to hang. A stopped process (signal(7)) is known by its state.
const (
	firstBeat = time.Second      // after the beginning of a call
	nextBeat  = 5 * time.Second  // after the last answer
	beatLimit = 10 * time.Second // for the answer
	startBeat = 5 * time.Second  // for the first answer of a keeper that was there before us
	hungBeat  = 200 * time.Millisecond
)

// pulse knows whether the keeper answers. It is safe for concurrent use.
type pulse struct {
	mu      sync.Mutex // guards all below
	pid     int        // of the keeper, 0 before its first answer
	hung    bool       // it did not give the last answer that it was asked for
	waiting map[*context.CancelCauseFunc]struct{}

	replaced uint64 // times that another keeper has answered than before
	lost     uint64 // times that events were lost

	timer *time.Timer // nil while nobody waits
}

// Ready returns nil when the keeper answers within limit, or else an error of kind Unavailable that says what it does
// instead. Of one that is known to hang the answer comes at once.
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

// lockedBy returns the process that has locked the state directory as its keeper, 0 for none.
func (c *Client) lockedBy() int {
	body, _ := os.ReadFile(filepath.Join(filepath.Dir(c.socket), "keeper", "lock"))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(body)))
	if process.Name(pid) != "kuri-keeper" {
		return 0 // it has died
	}
	return pid
}

// hangs notes that the keeper does not answer, gives up the connection on which what was asked waits, and says so.
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
		return &Hung{fmt.Sprintf("the keeper at %s does not answer; containers go on, nothing can be started or stopped; restart kurid", c.socket)}
	case st.stopped():
		return &Hung{fmt.Sprintf("the keeper, process %d at %s, is stopped and does not answer; continue it: kill -CONT %[1]d", pid, c.socket)}
	}
	return &Hung{fmt.Sprintf("the keeper, process %d at %s, does not answer: its state is %s; containers go on, nothing can be started or stopped; kill -9 %[1]d has another one go on with all of them", pid, c.socket, st)}
}

// Hung is the error of a keeper that is there and does not answer. Its kind is Unavailable.
type Hung struct{ text string }

func (h *Hung) Error() string { return h.text }

// Unwrap gives it its kind.
func (h *Hung) Unwrap() error { return fault.Unavailable }

// Losses returns how often another keeper has answered than before, and how often events were lost, since this client was
// made.
func (c *Client) Losses() (replaced, events uint64) {
	c.pulse.mu.Lock()
	defer c.pulse.mu.Unlock()
	return c.pulse.replaced, c.pulse.lost
}

// answered notes an answer, and who gave it.
func (p *pulse) answered(info *api.InfoResponse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid != 0 && p.pid != int(info.Pid) {
		p.replaced++
	}
	p.pid, p.hung = int(info.Pid), false
}

// watched returns a context that ends with a [Hung] as its cause when the keeper hangs, until done. Of a keeper that is
// known to hang nothing is asked: the error is a Hung.
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

// beat asks the keeper for a sign of life, and ends what waits when there is none.
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

// state is the letter and word of a process's state, as /proc/PID/status has it.
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
