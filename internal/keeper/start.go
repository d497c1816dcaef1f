package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
)

// Options configure which keeper serves.
type Options struct {
	Program       string // path of kuri-keeper; "": look beside our own executable, then in PATH
	StateDir      string // absolute; contains keeper.sock, the keeper's socket
	LogLevel      string // debug, info, warn or error; "" is info
	SystemdCgroup bool   // start the keeper in a systemd scope, not in cgroups that we create

	// Asked returns the requests that created this node's pods and containers, for a keeper that
	// takes over from one without records. Its Pid and Held are not set. Nil: such a keeper is not
	// replaced.
	Asked func() *Predecessor
}

// startLimit limits the time until a new keeper must be ready.
const startLimit = 20 * time.Second

// Start returns a client of the keeper that serves o.StateDir, and starts a keeper if none does. It
// replaces a keeper and a holder of another build than the installed programs. If two processes
// start one at the same time, one keeper stays and both clients use it. A hanging keeper is not
// replaced, because it has the containers; calls of the client fail until it continues.
func Start(ctx context.Context, o Options) (*Client, error) {
	if err := settleTakeOver(ctx, o.StateDir); err != nil {
		slog.Error("an interrupted take-over cannot be completed or reverted; the next start of kurid tries again",
			"err", err)
	}
	c := Connect(o.StateDir)
	err := c.Ready(ctx, startBeat)
	hung := (*Hung)(nil)
	if err == nil {
		findHolder(ctx, o.StateDir)
		err = c.replace(ctx, o)
	}
	if !errors.As(err, &hung) && errors.Is(err, fault.Unavailable) {
		err = c.startNew(ctx, o)
	}
	if err == nil {
		setLogLevel(o.StateDir, o.LogLevel)
		err = c.check(ctx)
	}
	if errors.As(err, &hung) {
		slog.Error("the keeper hangs: serving what there is without it", "err", err)
		return c, nil
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	c.start = func(ctx context.Context) error { return spawn(ctx, o) }
	return c, nil
}

// startNew starts a keeper if none serves.
func (c *Client) startNew(ctx context.Context, o Options) error {
	h := holder.Connect(o.StateDir)
	defer h.Close()
	if _, err := h.Info(); err == nil && c.fallBack(ctx, h) { // a kurid was killed while replacing the keeper
		return nil
	}
	err := spawn(ctx, o)
	if err != nil && c.appears(ctx, h) && c.Ready(ctx, startBeat) == nil { // one started at the same time has won
		return nil
	}
	return err
}

// check returns an error if the keeper speaks another protocol version.
func (c *Client) check(ctx context.Context) error {
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	if info.Protocol != Protocol {
		return fault.New(fault.Precondition,
			"the keeper at %s (pid %d, version %s) speaks protocol %d, this kurid speaks %d; "+
				"stop its containers and end it, or run the kurid that fits it", c.socket, info.Pid, info.Version, info.Protocol,
			Protocol)
	}
	return nil
}

// spawn starts the holder in a new session and new cgroups, and waits until the keeper that it
// starts serves. It starts none if a holder or a keeper is alive but unreachable.
func spawn(ctx context.Context, o Options) error {
	if err := os.MkdirAll(o.StateDir, 0o711); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	if found, err := findLiving(ctx, o.StateDir); found {
		return err
	}
	return spawnAfter(ctx, o, func(holder int) error {
		if !o.SystemdCgroup {
			return nil
		}
		if err := startScope(ctx, cgroupName(o.StateDir)+".scope", holder); err != nil {
			return fmt.Errorf("put the keeper into a cgroup of its own: %w", err)
		}
		return nil
	})
}

// spawnAfter starts a holder in an existing state directory, calls placed with its pid, and then
// lets it start the keeper.
func spawnAfter(ctx context.Context, o Options, placed func(holder int) error) error {
	p, err := findPrograms(o)
	if err != nil {
		return err
	}
	level := o.LogLevel
	if level == "" {
		level = "info"
	}
	args := []string{"--state", o.StateDir}
	if !o.SystemdCgroup {
		// Separate cgroups, so that whatever ends or limits kurid does not affect them. The holder
		// enters them itself and removes them when it exits. Those of a killed holder can be used
		// again.
		dirs, err := cgroup.MakeEverywhere(cgroupName(o.StateDir))
		if err != nil {
			return fmt.Errorf("make a cgroup for the keeper: %w", err)
		}
		for _, dir := range dirs {
			args = append(args, "--cgroup", dir)
		}
	}
	cmd := exec.Command(p.holder, append(args, "--", p.keeper, "--state", o.StateDir, "--log-level", level)...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return await(ctx, cmd, p.keeper, func() error { return placed(cmd.Process.Pid) })
}

// awaitHolder waits until the holder with that pid serves.
func awaitHolder(ctx context.Context, stateDir string, pid int) error {
	h := holder.Connect(stateDir)
	defer h.Close()
	for limit := time.Now().Add(startLimit); ; time.Sleep(time.Millisecond) {
		info, err := h.Info()
		if err == nil && info.Pid == pid {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("process %d is the holder already", info.Pid)
		}
		if time.Now().After(limit) || ctx.Err() != nil || syscall.Kill(pid, 0) != nil {
			return err
		}
	}
}

// await starts the holder, lets it start the keeper once placed has returned, and reads the
// keeper's message: "ready" or an error. After that both close their ends of the pipe.
func await(ctx context.Context, cmd *exec.Cmd, program string, placed func() error) error {
	said, say, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	cmd.Stdout, cmd.Stderr = say, say
	gate, err := cmd.StdinPipe()
	if err != nil {
		return errors.Join(err, say.Close())
	}
	err = cmd.Start()
	say.Close()
	if err != nil {
		return fault.New(fault.Unavailable, "start the holder: %w", err)
	}
	go func() { _ = cmd.Wait() }() // reaps it if it exits before we do
	if err := placed(); err != nil {
		cmd.Process.Kill()
		return err
	}
	gate.Close()
	limit := time.Now().Add(startLimit)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	said.SetReadDeadline(limit)
	text, err := io.ReadAll(io.LimitReader(said, 16<<10))
	if answer := strings.TrimSpace(string(text)); answer != "ready" {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the holder and the keeper
		if err != nil {
			answer = strings.TrimSpace(fmt.Sprintf("%s (it was not ready in time: %v)", answer, err))
		}
		return fault.New(fault.Unavailable, "start the keeper %s: %s", program, answer)
	}
	return nil
}

// findKeeper returns the path of kuri-keeper.
func findKeeper(given string) (string, error) {
	if given != "" {
		return filepath.Abs(given)
	}
	var beside []string
	if self, err := os.Executable(); err == nil {
		beside = append(beside, filepath.Dir(self))
	}
	return findProgram("kuri-keeper", beside...)
}

// findProgram returns the path of a program in one of the directories, or in PATH.
func findProgram(name string, dirs ...string) (string, error) {
	for _, dir := range dirs {
		if path := filepath.Join(dir, name); exists(path) {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fault.New(fault.NotFound, "%s is neither in %s nor in PATH: %w", name, strings.Join(dirs, ", "), err)
	}
	return filepath.Abs(path)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
