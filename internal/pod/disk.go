package pod

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kuri-cri/kuri/internal/quota"
)

// The disk usage of directories is counted in the background, while clients ask for it. Requests get the last count,
// with its time.
const (
	countAge   = 10 * time.Second      // minimum interval between two counts of a directory
	countShare = 20                    // minimum interval as a multiple of the duration of the last count
	countSlice = 5 * time.Millisecond  // time slice of a directory before the next one's turn
	countPause = 15 * time.Millisecond // pause between slices, if directories take more than one
	countWait  = 50 * time.Millisecond // how long a request may wait for quick counts
)

// diskUsage is one count of a directory's disk usage.
type diskUsage struct {
	at            time.Time
	bytes, inodes uint64
	took          time.Duration // duration of the count
}

// usage is the disk usage of one directory. The zero value has not been counted.
type usage struct {
	last atomic.Pointer[diskUsage]
	long atomic.Bool // the last count took longer than two slices, or the current one longer than one

	mu      sync.Mutex
	counted chan struct{} // closed when the current count is done or dropped; nil if there is none
}

// known returns the last count. Its time is zero if there is none yet.
func (u *usage) known() diskUsage {
	if last := u.last.Load(); last != nil {
		return *last
	}
	return diskUsage{}
}

// stale reports whether a new count is due.
func (u *usage) stale(now time.Time) bool {
	last := u.last.Load()
	return last == nil || now.Sub(last.at) >= max(countAge, countShare*last.took)
}

// quick reports whether the next count is likely to take no longer than two slices.
func (u *usage) quick() bool { return !u.long.Load() }

// counter counts directories in one goroutine, which runs as long as there are any to count. It is safe for concurrent
// use.
type counter struct {
	mu     sync.Mutex
	quick  []*count // counted before the slow ones
	slow   []*count // counted in turn, a slice each
	awake  bool     // the goroutine runs
	closed bool
	woken  chan struct{} // has a token after wake: ends a pause
	done   sync.WaitGroup
}

// count is the queued or running count of one directory.
type count struct {
	dir   string
	of    *usage
	walk  *walk
	began time.Time
	took  time.Duration
}

// refresh queues a count of u if one is due. It returns a channel that is closed when the count is
// done or dropped, or nil if none is due or the counter is closed.
func (c *counter) refresh(u *usage, dir string) <-chan struct{} {
	if !u.stale(time.Now()) {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.counted != nil {
		return u.counted
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	u.counted = make(chan struct{})
	one := &count{dir: dir, of: u}
	if u.quick() {
		c.quick = append(c.quick, one)
	} else {
		c.slow = append(c.slow, one)
	}
	c.wake()
	return u.counted
}

// wake starts the goroutine, or ends its pause. The caller holds mu.
func (c *counter) wake() {
	if c.woken == nil {
		c.woken = make(chan struct{}, 1)
	}
	select {
	case c.woken <- struct{}{}:
	default:
	}
	if !c.awake {
		c.awake = true
		c.done.Go(c.run)
	}
}

func (c *counter) close() {
	c.mu.Lock()
	c.closed = true
	if c.woken != nil {
		select {
		case c.woken <- struct{}{}:
		default:
		}
	}
	c.mu.Unlock()
	c.done.Wait()
}

// next returns the next directory to count, nil if there is none. If the counter is closed, the
// count must be dropped.
func (c *counter) next() (one *count, closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, queue := range []*[]*count{&c.quick, &c.slow} {
		if len(*queue) > 0 {
			one, *queue = (*queue)[0], (*queue)[1:]
			return one, c.closed
		}
	}
	c.quick, c.slow, c.awake = nil, nil, false
	return nil, c.closed
}

func (c *counter) run() {
	for {
		one, closed := c.next()
		switch {
		case one == nil:
			return
		case closed:
			one.drop()
			continue
		case one.slice():
			continue
		}
		c.mu.Lock()
		c.slow = append(c.slow, one)
		c.mu.Unlock()
		c.pause()
	}
}

// pause leaves the CPU to others for countPause. It ends early if a quick count is queued.
func (c *counter) pause() {
	c.mu.Lock()
	wait := len(c.quick) == 0 && !c.closed
	c.mu.Unlock()
	if !wait {
		return
	}
	timer := time.NewTimer(countPause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.woken:
	}
}

// slice counts for one time slice, and reports whether the count is complete.
func (one *count) slice() bool {
	begin := time.Now()
	if one.walk == nil {
		one.began = begin
		used, counted, err := quota.Used(one.dir)
		if counted {
			one.finish(used.Bytes, used.Inodes, err, begin)
			return true
		}
		if one.walk, err = newWalk(one.dir); err != nil {
			one.finish(0, 0, err, begin)
			return true
		}
	}
	done, err := one.walk.step(begin.Add(countSlice))
	if !done && err == nil {
		one.took += time.Since(begin)
		one.of.long.Store(true)
		return false
	}
	one.walk.close()
	one.finish(one.walk.bytes, one.walk.inodes, err, begin)
	return true
}

// finish publishes the count. A directory that is gone counts as empty. A directory that cannot be counted keeps its
// last count.
func (one *count) finish(bytes, inodes uint64, err error, begin time.Time) {
	now := &diskUsage{at: one.began, bytes: bytes, inodes: inodes, took: one.took + time.Since(begin)}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Warn("the disk usage of a writable layer cannot be counted", "dir", one.dir, "err", err)
		now.bytes, now.inodes = 0, 0
		if last := one.of.last.Load(); last != nil {
			now.bytes, now.inodes = last.bytes, last.inodes
		}
	}
	one.of.last.Store(now)
	one.of.long.Store(now.took > 2*countSlice)
	one.done()
}

// drop ends a count that is not complete. The usage keeps its last count.
func (one *count) drop() {
	if one.walk != nil {
		one.walk.close()
	}
	one.done()
}

// done tells those who wait for the count, and lets the next one be queued.
func (one *count) done() {
	one.of.mu.Lock()
	defer one.of.mu.Unlock()
	close(one.of.counted)
	one.of.counted = nil
}

// freshen starts the counts of containers' writable layers that are due. It waits for the quick ones, no longer than
// countWait for all of them: a large layer delays no one.
func (p *Pods) freshen(ctx context.Context, containers ...*Container) {
	var quick []<-chan struct{}
	for _, c := range containers {
		soon := c.usage.quick()
		if done := p.counts.refresh(&c.usage, p.paths.upper(c.Record())); done != nil && soon {
			quick = append(quick, done)
		}
	}
	if len(quick) == 0 {
		return
	}
	timer := time.NewTimer(countWait)
	defer timer.Stop()
	for _, done := range quick {
		select {
		case <-done:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
