package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/process"
)

// An upgrade is a restart with other programs. If the running keeper or holder is of another build
// than the programs beside kurid, kurid replaces it: the holder by execve in its own process, the
// keeper by killing it, which its successor handles as any death. Versions are only for people;
// kurid compares the content of the programs.

// TooOld is the exit code of kuri-keeper --check if it cannot read the records of the running
// keeper.
const TooOld = 3

// previousProgram is the holder's name for the program of the keeper that is being replaced.
const previousProgram = "program/previous"

const (
	checkLimit = 10 * time.Second       // for a program to report whether it fits
	answerTime = 100 * time.Millisecond // timeout of one Info call to a keeper that is starting
	missingMax = 3
)

// programs is the pair of programs beside this kurid, by path.
type programs struct{ keeper, holder string }

func findPrograms(o Options) (programs, error) {
	keeper, err := findKeeper(o.Program)
	if err != nil {
		return programs{}, err
	}
	holder, err := findProgram("kuri-holder", filepath.Dir(keeper))
	return programs{keeper, holder}, err
}

// replace replaces the holder and the keeper if they run another build than the programs beside
// this kurid. Running containers are not affected. If the error is of kind Precondition, the
// programs are too old and nothing was changed. If it is of kind Unavailable, no keeper serves any
// more, because the old one held nothing.
func (c *Client) replace(ctx context.Context, o Options) error {
	// 1. The running programs.
	old, err := c.Info(ctx)
	if err != nil {
		return err
	}
	h := holder.Connect(o.StateDir)
	defer h.Close()
	held, herr := h.Info()
	p, err := findPrograms(o)
	if err != nil {
		slog.Warn("the programs of the keeper and the holder are missing: neither can be started again after its end",
			"err", err)
		return nil
	}

	// 2. The ones to be replaced.
	otherKeeper, otherHolder := differs(old.Pid, p.keeper), herr == nil && differs(int32(held.Pid), p.holder)
	if !otherKeeper && !otherHolder {
		return nil
	}

	// 3. The check that their successors work and can read the records.
	err = errors.Join(works(ctx, p.holder, "--version"), works(ctx, p.keeper, "--state", o.StateDir, "--check"))
	switch {
	case errors.Is(err, fault.Precondition):
		return fault.New(fault.Precondition,
			"the keeper that runs, process %d, is of version %s, which is too new for the programs beside this kurid; nothing was changed: %w",
			old.Pid, old.Version, err)
	case err != nil:
		slog.Error("another build of the keeper or the holder is installed and does not work; those that run go on",
			"err", err)
		return nil
	case herr != nil:
		return c.replaceAlone(ctx, o, p, old)
	}

	// 4. The holder first: a new keeper may need features that an old holder lacks.
	if otherHolder {
		replaceHolder(h, p.holder, held)
	}
	if otherKeeper {
		c.replaceKeeper(ctx, h, p.keeper, old)
	}
	return nil
}

// differs reports whether a process runs another program than the one at path. It returns false if
// it cannot compare them.
func differs(pid int32, path string) bool {
	running, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		slog.Warn("the program of a process cannot be read", "pid", pid, "err", err)
		return false
	}
	defer running.Close()
	file, err := os.Open(path)
	if err != nil {
		slog.Warn("a program cannot be read", "err", err)
		return false
	}
	defer file.Close()
	same, err := equal(running, file)
	if err != nil {
		slog.Warn("a program cannot be compared with that of a process", "program", path, "pid", pid, "err", err)
	}
	return err == nil && !same
}

// equal reports whether two files have the same content.
func equal(a, b *os.File) (bool, error) {
	ai, aerr := a.Stat()
	bi, berr := b.Stat()
	if err := errors.Join(aerr, berr); err != nil || ai.Size() != bi.Size() {
		return false, err
	}
	if os.SameFile(ai, bi) {
		return true, nil
	}
	one, other := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		n, err := io.ReadFull(a, one)
		m, oerr := io.ReadFull(b, other)
		if !bytes.Equal(one[:n], other[:m]) {
			return false, nil
		}
		if end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF); end || err != nil || oerr != nil {
			if end {
				err = nil
			}
			return err == nil, err
		}
	}
}

// works runs a program that only checks and reports. The error is of kind Precondition if it
// reports that it is too old.
func works(ctx context.Context, program string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	said := strings.TrimSpace(string(out))
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == TooOld {
		return fault.New(fault.Precondition, "%s", said)
	}
	return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, said)
}

// replaceHolder makes the holder execute its new program. If that fails, the holder continues
// unchanged.
func replaceHolder(h *holder.Client, program string, old holder.Info) {
	err := h.Reexec(program)
	if errors.Is(err, fault.Unavailable) {
		slog.Error("the holder has ended while it was replaced; what runs goes on, and is lost with the keeper if that ends before another holder is there",
			"pid", old.Pid, "version", old.Version, "program", program, "err", err)
		return
	}
	if err != nil {
		slog.Error("the holder cannot be replaced and goes on as it is", "pid", old.Pid, "version", old.Version,
			"program", program, "err", err)
		return
	}
	now, err := h.Info()
	slog.Info("the holder was replaced", "pid", now.Pid, "version", now.Version, "was", old.Version, "err", err)
}

// replaceKeeper makes the holder kill the old keeper and start the new program. If the new keeper
// does not serve, the old program is started again, from a descriptor of it that the holder keeps.
func (c *Client) replaceKeeper(ctx context.Context, h *holder.Client, program string, old *api.InfoResponse) {
	begun := time.Now()
	err := keepProgram(h, old.Pid)
	if err == nil {
		err = h.Program(program)
	}
	if err != nil {
		slog.Error("the keeper cannot be replaced and goes on as it is", "pid", old.Pid, "version", old.Version, "err", err)
		return
	}
	if now, err := c.restart(ctx, h, old.Pid); err == nil {
		slog.Info("the keeper was replaced", "pid", now.Pid, "version", now.Version, "was", old.Version, "was_pid", old.Pid,
			"took", time.Since(begun))
		if err := h.Drop(previousProgram); err != nil {
			slog.Warn("the holder still has the program of the previous keeper", "err", err)
		}
	} else {
		slog.Error("the new keeper does not serve; the program of the one before is started again", "program", program,
			"version", old.Version,
			"log", filepath.Join(filepath.Dir(c.socket), "keeper.log"), "err", err)
		c.fallBack(ctx, h)
	}
}

// keepProgram stores the program of a process in the holder.
func keepProgram(h *holder.Client, pid int32) error {
	exe, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return err
	}
	defer exe.Close()
	return h.Put(previousProgram, exe)
}

// fallBack starts the previous keeper's program, if the holder has it, and reports whether it
// serves.
func (c *Client) fallBack(ctx context.Context, h *holder.Client) bool {
	err := h.Program(previousProgram)
	if err == nil {
		var now *api.InfoResponse
		if now, err = c.restart(ctx, h, 0); err == nil {
			slog.Warn("the keeper is of the version before; the next start of kurid tries again to replace it", "pid", now.Pid,
				"version", now.Version)
			return true
		}
	}
	if !errors.Is(err, fault.NotFound) {
		slog.Error("the previous keeper does not serve", "err", err)
	}
	return false
}

// restart kills the keeper through the holder, and waits until one with another pid than old
// serves.
func (c *Client) restart(ctx context.Context, h *holder.Client, old int32) (*api.InfoResponse, error) {
	before, err := h.Info()
	if err == nil {
		err = h.RestartKeeper()
	}
	if err != nil {
		return nil, err
	}
	missing := 0 // checks without a keeper: the next one starts at once, unless it has also exited
	for limit := time.Now().Add(startLimit); time.Now().Before(limit) && ctx.Err() == nil; {
		answer, cancel := context.WithTimeout(ctx, answerTime)
		now, err := c.Info(answer)
		cancel()
		if err == nil && now.Pid != old && int(now.Pid) != before.Keeper {
			return now, nil
		}
		held, err := h.Info()
		if err != nil {
			return nil, err
		}
		if held.Keeper == 0 {
			missing++
		}
		if missing >= missingMax {
			return nil, errors.New("it ends at its start")
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, errors.Join(fmt.Errorf("it does not serve within %s", startLimit), ctx.Err())
}

// replaceAlone replaces a keeper without a holder, from a release that had none. It starts a
// holder, which receives the keeper's resources before the keeper is ended. A keeper that holds
// nothing is only terminated. The error is of kind Unavailable if no keeper serves any more.
func (c *Client) replaceAlone(ctx context.Context, o Options, p programs, old *api.InfoResponse) error {
	list, err := c.List(ctx)
	if err != nil {
		return err
	}
	if len(list.Sandboxes)+len(list.Containers) > 0 {
		return c.takeOver(ctx, o, p, old, list)
	}
	pidfd, err := process.Open(int(old.Pid))
	if err != nil {
		return fault.New(fault.Unavailable, "the keeper has ended: %w", err)
	}
	defer pidfd.Close()
	if err := pidfd.Signal(unix.SIGTERM); err != nil {
		return fault.New(fault.Unavailable, "the keeper has ended: %w", err)
	}
	if !pidfd.Ends(checkLimit) {
		slog.Warn("the keeper that runs is of another build and does not end as asked: it goes on", "pid", old.Pid,
			"version", old.Version)
		return nil
	}
	slog.Info("the keeper of another build held nothing and has ended", "pid", old.Pid, "version", old.Version)
	return fault.New(fault.Unavailable, "the keeper, process %d, has ended as asked", old.Pid)
}

// takeOver ends a keeper without a holder, and starts one that continues with its resources.
func (c *Client) takeOver(ctx context.Context, o Options, p programs, old *api.InfoResponse,
	list *api.ListResponse) error {
	if o.Asked == nil || keepsRecords(o.StateDir, list) {
		slog.Warn("the keeper that runs is of another build, and its holder has died: it goes on, and becomes the holder itself", "pid", old.Pid, "version", old.Version)
		return nil
	}
	begun := time.Now()
	of := o.Asked()
	of.Pid, of.Held = int(old.Pid), list
	err := spawnAfter(ctx, o, func(holder int) error {
		if err := awaitHolder(ctx, o.StateDir, holder); err != nil {
			return err
		}
		if o.SystemdCgroup { // the scope exists
			if err := cgroup.Join(holder, of.Pid); err != nil {
				return err
			}
		}
		err := endPredecessor(ctx, p.keeper, o.StateDir, of)
		if err != nil && takenOver(ctx, o.StateDir, of.Pid) {
			slog.Warn("the process that took over from an older keeper did not come to its end; the keeper has ended, and its successor goes on", "err", err)
			err = nil
		}
		return err
	})
	if err != nil {
		slog.Error("the keeper that runs is of an older release, and cannot be replaced", "pid", old.Pid,
			"version", old.Version, "err", err)
		return c.Ready(ctx, startBeat) // it continues, unless it has exited
	}
	slog.Info("the keeper of an older release was replaced, and has a holder from now on", "was", old.Version,
		"was_pid", old.Pid,
		"pods", len(list.Sandboxes), "containers", len(list.Containers), "took", time.Since(begun))
	return nil
}

// keepsRecords reports whether the keeper writes records, as all keepers with a holder do.
func keepsRecords(stateDir string, held *api.ListResponse) bool {
	return slices.ContainsFunc(held.Sandboxes, func(box *api.Sandbox) bool {
		return exists(filepath.Join(stateDir, "keeper", "sandboxes", box.Id+".json"))
	}) || slices.ContainsFunc(held.Containers, func(c *api.Container) bool { // its sandbox's record may be lost
		return exists(filepath.Join(stateDir, "keeper", "containers", c.Id+".json"))
	})
}

// endPredecessor runs the new keeper's program, which takes over the old keeper's resources and
// ends it.
func endPredecessor(ctx context.Context, program, stateDir string, of *Predecessor) error {
	body, err := json.Marshal(of)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--state", stateDir, "--take-over")
	cmd.Stdin = bytes.NewReader(body)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("take over from process %d: %w: %s", of.Pid, err, bytes.TrimSpace(out))
	}
	if len(out) > 0 {
		slog.Warn("taking over from an older keeper", "said", string(bytes.TrimSpace(out)))
	}
	return nil
}
