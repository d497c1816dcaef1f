package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/step"
	"github.com/kuri-cri/kuri/internal/stream"
)

// execLimit is the CRI's limit for the answer to an ExecSync: 16 MiB. A kubelet receives no larger
// message. While the command runs, each of its streams is kept up to this limit.
const execLimit = 16 << 20

// answerLimit bounds stdout and stderr together, in bytes. The rest of execLimit is for the encoding.
const answerLimit = execLimit - 1<<10

// Output is the output and exit code of a command. Each piece must be freed: the memory of all outputs together is
// bounded.
type Output struct {
	Stdout, Stderr []*Piece // at most answerLimit together, the rest was dropped
	Code           int32
}

// ExecSync runs a command in a running container and returns when the command has ended. It does not wait for
// background processes that the command leaves running. When timeout passes (0 for none) or ctx ends, the command and
// all processes that it started are killed. For the timeout, the error is of kind Deadline.
//
// The outputs of all ExecSyncs share one bounded memory. A command that finds it full waits, within its timeout and for
// at most execWaitLimit, and then fails with an error of kind Exhausted.
//
// At most MaxExecs run at once. The others wait for their turn, first come, first served, for their timeout, or for
// execWaitLimit if they have none. The timeout starts again with the command. Without a turn by then the error is of
// kind Exhausted, which a kubelet does not count as a failed probe.
func (p *Pods) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (*Output, error) {
	if timeout < 0 {
		return nil, fault.New(fault.Invalid, "timeout: %s is negative", timeout)
	}
	c, err := p.Executable(id, cmd)
	if err != nil {
		return nil, err
	}
	r := c.Record()
	step.Enter(ctx, "turn")
	done, err := p.execs.take(ctx, timeout)
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", r.name(), err)
	}
	defer done()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errTimeout)
		defer cancel()
	}
	step.Enter(ctx, "command")
	out := p.outputs.begin(ctx)
	code, err := p.Keeper.Exec(ctx, r.ID, cmd, false, keeper.Streams{Stdout: &out.stdout, Stderr: &out.stderr})
	out.end()
	if err != nil {
		out.discard()
	}
	if errors.Is(err, fault.Deadline) && errors.Is(context.Cause(ctx), errTimeout) {
		return nil, fmt.Errorf("exec in %s: %q, with a timeout of %s: %w", r.name(), cmd[0], timeout, err)
	}
	if errors.Is(err, errTimeout) {
		return nil, fault.New(fault.Deadline, "exec in %s: %q was killed, it ran longer than its timeout of %s", r.name(), cmd[0], timeout)
	}
	if err != nil {
		return nil, fmt.Errorf("exec in %s: %w", r.name(), err)
	}
	out.fit()
	return &Output{out.stdout.pieces, out.stderr.pieces, code}, nil
}

// execWaitLimit is how long an exec without a timeout waits for its turn, and any exec for output memory.
const execWaitLimit = 30 * time.Second

// execTurns bounds how many ExecSyncs run at once. It is safe for concurrent use.
type execTurns struct {
	most  int
	turns *semaphore.Weighted // first come, first served
}

func newExecTurns(most int) *execTurns { return &execTurns{most, semaphore.NewWeighted(int64(most))} }

// take waits for a turn, for at most limit (0: execWaitLimit) or until ctx ends. done ends the turn.
func (t *execTurns) take(ctx context.Context, limit time.Duration) (done func(), err error) {
	if limit == 0 {
		limit = execWaitLimit
	}
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	switch err := t.turns.Acquire(waiting, 1); {
	case err == nil:
		return func() { t.turns.Release(1) }, nil
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	}
	return nil, fault.New(fault.Exhausted, "%d commands run already by ExecSync, as many as may at once (pod.max_execs), and none ended within %s; "+
		"raise pod.max_execs, or see which commands hang", t.most, limit)
}

// errTimeout is the cause of the end of an exec's context if the exec's own timeout has passed, not the caller's.
var errTimeout = errors.New("the exec's time is over")

// Stream returns the container for package stream.
func (c *Container) Stream() stream.Container {
	r := c.Record()
	return stream.Container{ID: r.ID, Name: r.name()}
}

// Executable returns the container if it runs, so that a command can be executed in it. Else the error is of kind
// Precondition. It is of kind Invalid if cmd is empty.
func (p *Pods) Executable(id string, cmd []string) (*Container, error) {
	if len(cmd) == 0 || cmd[0] == "" {
		return nil, fault.New(fault.Invalid, "cmd: an exec needs a command")
	}
	return p.running(id)
}

// Attachable returns the container if it runs and, if stdin is wanted, was created with stdin. Else the error is of
// kind Precondition.
func (p *Pods) Attachable(id string, stdin bool) (*Container, error) {
	c, err := p.running(id)
	if err != nil {
		return nil, err
	}
	if stdin && !c.Record().config().GetStdin() {
		return nil, fault.New(fault.Precondition, "%s was created without stdin; attach without it, or create the container with stdin", c.Record().name())
	}
	return c, nil
}

// ReopenLog has the container's log file created again, after a rotation. If the container does not run, the error is
// of kind Precondition and no file is created.
func (p *Pods) ReopenLog(ctx context.Context, id string) error {
	c, err := p.running(id)
	if err != nil {
		return err
	}
	if err := p.Keeper.ReopenLog(ctx, c.Record().ID); err != nil {
		return fmt.Errorf("reopen the log of %s: %w", c.Record().name(), err)
	}
	return nil
}

// running returns the container if it runs. Else the error is of kind Precondition.
func (p *Pods) running(id string) (*Container, error) {
	c, err := p.Container(id)
	if err != nil {
		return nil, err
	}
	if r := c.Record(); r.State != Running {
		return nil, fault.New(fault.Precondition, "%s is %s, not running", r.name(), r.State)
	}
	return c, nil
}
