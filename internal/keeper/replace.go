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
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/process"
)

// An upgrade is a restart with other programs. A kurid that finds a keeper or a holder of another build than the programs
// beside it replaces them: the holder by execve of itself, the keeper by the way that it takes when it is killed. Versions
// are told to people; what is compared is the content of the programs.

// TooOld is the exit code of a kuri-keeper that was asked whether it can go on with the records of the one that runs, and
// cannot read them.
const TooOld = 3

// previousProgram is the name under which the holder has the program of the keeper that is being replaced.
const previousProgram = "program/previous"

const (
	checkLimit = 10 * time.Second       // for a program that says whether it fits
	answerTime = 100 * time.Millisecond // between two looks at a keeper that starts
	missingMax = 3
)

// programs are those beside this kurid.
type programs struct{ keeper, holder string }

func findPrograms(o Options) (programs, error) {
	keeper, err := findKeeper(o.Program)
	if err != nil {
		return programs{}, err
	}
	holder, err := findProgram("kuri-holder", filepath.Dir(keeper))
	return programs{keeper, holder}, err
}

// replace has the holder and the keeper replaced where they run another build than the programs beside this kurid. What
// runs goes on with either. An error of kind Precondition says that the programs are too old, and nothing has been changed;
// one of kind Unavailable that no keeper serves any more, for it held nothing.
func (c *Client) replace(ctx context.Context, o Options) error {
	// 1. Who runs.
	old, err := c.Info(ctx)
	if err != nil {
		return err
	}
	h := holder.Connect(o.StateDir)
	defer h.Close()
	held, herr := h.Info()
	p, err := findPrograms(o)
	if err != nil {
		slog.Warn("the programs of the keeper and the holder are not there: they cannot be replaced when they end", "err", err)
		return nil
	}

	// 2. Which are to be replaced.
	otherKeeper, otherHolder := differs(old.Pid, p.keeper), herr == nil && differs(int32(held.Pid), p.holder)
	if !otherKeeper && !otherHolder {
		return nil
	}

	// 3. Their successors work, and can go on with what there is.
	err = errors.Join(works(ctx, p.holder, "--version"), works(ctx, p.keeper, "--state", o.StateDir, "--check"))
	switch {
	case errors.Is(err, fault.Precondition):
		return fault.New(fault.Precondition, "the keeper that runs, process %d, is of version %s, which is too new for the programs beside this kurid; nothing was changed: %w",
			old.Pid, old.Version, err)
	case err != nil:
		slog.Error("another build of the keeper or the holder is installed and does not work; those that run go on", "err", err)
		return nil
	case herr != nil:
		return c.replaceAlone(ctx, o, p, old)
	}

	// 4. The holder first: a new keeper may ask more of it than an old one.
	if otherHolder {
		replaceHolder(h, p.holder, held)
	}
	if otherKeeper {
		c.replaceKeeper(ctx, h, p.keeper, old)
	}
	return nil
}

// differs reports whether a process runs another program than the one at path. Where that cannot be told it does not.
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
	if now, err := file.Stat(); err == nil && isCopyOf(running.Name(), now) {
		return false
	}
	same, err := equal(running, file)
	if err != nil {
		slog.Warn("a program cannot be compared with that of a process", "program", path, "pid", pid, "err", err)
	}
	return err == nil && !same
}

// CopyName names a copy of the program of a keeper that runs from one, so that the next kurid need not read both to see that
// they are the same: which file it is of, and when that was last changed. A file that was changed a moment ago may be changed
// again within the resolution of its time; its copy is not named so.
func CopyName(of os.FileInfo) string {
	id, changed := fileState(of)
	if id == "" || time.Since(changed) < settleTime {
		return copyName
	}
	return id + "/" + copyName
}

const copyName = "kuri-keeper"

// settleTime is more than the resolution of any filesystem's times.
const settleTime = 3 * time.Second

// fileState identifies a file and its content, and says when that was last changed, which nobody can set. It is "" where the
// system does not say.
func fileState(file os.FileInfo) (id string, changed time.Time) {
	st, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return "", time.Time{}
	}
	changed = time.Unix(st.Ctim.Unix())
	return fmt.Sprintf("%d-%d-%d-%d", st.Dev, st.Ino, st.Size, changed.UnixNano()), changed
}

// isCopyOf reports whether the program behind exe, of /proc/PID/exe, is a copy of the file as it is now, by the copy's name.
func isCopyOf(exe string, file os.FileInfo) bool {
	name, err := os.Readlink(exe)
	id, _ := fileState(file)
	return err == nil && id != "" && strings.HasPrefix(name, "/memfd:") && strings.Contains(name, ":"+id+"/"+copyName)
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

// works runs a program that only says something. The error is of kind Precondition if it says that it is too old.
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

// replaceHolder has the holder start its new program in its own process. One that cannot goes on as it is.
func replaceHolder(h *holder.Client, program string, old holder.Info) {
	err := h.Reexec(program)
	if errors.Is(err, fault.Unavailable) {
		slog.Error("the holder has ended while it was replaced; what runs goes on, and is lost with the keeper if that ends before another holder is there",
			"pid", old.Pid, "version", old.Version, "program", program, "err", err)
		return
	}
	if err != nil {
		slog.Error("the holder cannot be replaced and goes on as it is", "pid", old.Pid, "version", old.Version, "program", program, "err", err)
		return
	}
	now, err := h.Info()
	slog.Info("the holder was replaced", "pid", now.Pid, "version", now.Version, "was", old.Version, "err", err)
}

// replaceKeeper has the holder start the keeper's new program in place of the old keeper, which is killed. When the new one
// does not come to serve, the old program is started again, from a descriptor that the holder has of it.
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
		slog.Info("the keeper was replaced", "pid", now.Pid, "version", now.Version, "was", old.Version, "was_pid", old.Pid, "took", time.Since(begun))
		if err := h.Drop(previousProgram); err != nil {
			slog.Warn("the holder keeps the program of the keeper before", "err", err)
		}
	} else {
		slog.Error("the new keeper does not serve; the program of the one before is started again", "program", program, "version", old.Version,
			"log", filepath.Join(filepath.Dir(c.socket), "keeper.log"), "err", err)
		c.fallBack(ctx, h)
	}
}

// keepProgram gives the holder the program that a process runs.
func keepProgram(h *holder.Client, pid int32) error {
	exe, err := os.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return err
	}
	defer exe.Close()
	return h.Put(previousProgram, exe)
}

// fallBack starts the program of the keeper before, if the holder has it, and reports whether it serves.
func (c *Client) fallBack(ctx context.Context, h *holder.Client) bool {
	err := h.Program(previousProgram)
	if err == nil {
		var now *api.InfoResponse
		if now, err = c.restart(ctx, h, 0); err == nil {
			slog.Warn("the keeper is of the version before; the next start of kurid tries again to replace it", "pid", now.Pid, "version", now.Version)
			return true
		}
	}
	if !errors.Is(err, fault.NotFound) {
		slog.Error("the keeper of the version before does not serve", "err", err)
	}
	return false
}

// restart has the keeper killed and waits until another one serves than that with the pid old.
func (c *Client) restart(ctx context.Context, h *holder.Client, old int32) (*api.InfoResponse, error) {
	before, err := h.Info()
	if err == nil {
		err = h.RestartKeeper()
	}
	if err != nil {
		return nil, err
	}
	missing := 0 // times that there was no keeper: the next one is started at once, unless it has ended, too
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

// replaceAlone replaces a keeper that has no holder: that of a release before there was one. A holder is started first, and
// gets what the keeper has before that is ended. One that holds nothing ends as asked. The error is of kind Unavailable when
// no keeper serves any more.
func (c *Client) replaceAlone(ctx context.Context, o Options, p programs, old *api.InfoResponse) error {
	list, err := c.List(ctx)
	if err != nil {
		return err
	}
	if len(list.Sandboxes) > 0 {
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
		slog.Warn("the keeper that runs is of another build and does not end as asked: it goes on", "pid", old.Pid, "version", old.Version)
		return nil
	}
	slog.Info("the keeper of another build held nothing and has ended", "pid", old.Pid, "version", old.Version)
	return fault.New(fault.Unavailable, "the keeper, process %d, has ended as asked", old.Pid)
}

// takeOver ends a keeper that has no holder, and starts one that goes on with what it had.
func (c *Client) takeOver(ctx context.Context, o Options, p programs, old *api.InfoResponse, list *api.ListResponse) error {
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
		if o.SystemdCgroup { // the scope is there
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
		slog.Error("the keeper that runs is of an older release, and cannot be replaced", "pid", old.Pid, "version", old.Version, "err", err)
		return c.Ready(ctx, startBeat) // it goes on, unless it has ended
	}
	slog.Info("the keeper of an older release was replaced, and has a holder from now on", "was", old.Version, "was_pid", old.Pid,
		"pods", len(list.Sandboxes), "containers", len(list.Containers), "took", time.Since(begun))
	return nil
}

// keepsRecords reports whether the keeper writes records of what it holds, as all do since there are holders.
func keepsRecords(stateDir string, held *api.ListResponse) bool {
	return slices.ContainsFunc(held.Sandboxes, func(box *api.Sandbox) bool {
		return exists(filepath.Join(stateDir, "keeper", "sandboxes", box.Id+".json"))
	})
}

// endPredecessor has the new keeper's program take what the old keeper has, and end it.
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
