package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Options say which keeper serves.
type Options struct {
	Program       string // path of kuri-keeper; "" looks beside our own executable, then in PATH
	StateDir      string // absolute; the keeper listens on keeper.sock in it
	LogLevel      string // debug, info, warn or error; "" is info
	SystemdCgroup bool   // put a keeper that is started into a systemd scope, not into a cgroup made by hand
}

// startLimit bounds the time in which a new keeper must be ready.
const startLimit = 20 * time.Second

// Start returns a client of the keeper that serves o.StateDir, and starts one when none does. Of two that start one at
// the same time, one keeper stays and both clients have it.
func Start(ctx context.Context, o Options) (*Client, error) {
	c := Connect(o.StateDir)
	err := c.check(ctx)
	if errors.Is(err, fault.Unavailable) {
		if serr := spawn(ctx, o); serr != nil {
			// The one that started at the same time as ours may have won.
			if err = c.check(ctx); err != nil {
				err = serr
			}
		} else {
			err = c.check(ctx)
		}
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// check asks the keeper who it is and refuses one whose protocol we do not speak.
func (c *Client) check(ctx context.Context) error {
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	if info.Protocol != Protocol {
		return fault.New(fault.Precondition, "the keeper at %s (pid %d, version %s) speaks protocol %d, this kurid speaks %d; "+
			"stop its containers and end it, or run the kurid that fits it", c.socket, info.Pid, info.Version, info.Protocol, Protocol)
	}
	return nil
}

// spawn starts kuri-keeper in a session and cgroup of its own, and waits until it serves.
func spawn(ctx context.Context, o Options) error {
	program, err := findProgram(o.Program)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.StateDir, 0o711); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	// The keeper says "ready" or what is wrong, and then closes its end.
	said, say, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	level := o.LogLevel
	if level == "" {
		level = "info"
	}
	cmd := exec.Command(program, "--state", o.StateDir, "--log-level", level)
	cmd.Dir, cmd.Env = "/", []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stdout, cmd.Stderr = say, say
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	say.Close()
	if err != nil {
		return fault.New(fault.Unavailable, "start the keeper: %w", err)
	}
	go cmd.Wait() // reaps it when it ends before we do; it is nobody's child else
	if err := enterCgroup(ctx, o, cmd.Process.Pid); err != nil {
		cmd.Process.Kill()
		return fmt.Errorf("put the keeper into a cgroup of its own: %w", err)
	}
	limit := time.Now().Add(startLimit)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	said.SetReadDeadline(limit)
	text, err := io.ReadAll(io.LimitReader(said, 16<<10))
	if answer := strings.TrimSpace(string(text)); answer != "ready" {
		cmd.Process.Kill()
		if err != nil {
			answer = strings.TrimSpace(fmt.Sprintf("%s (it was not ready in time: %v)", answer, err))
		}
		return fault.New(fault.Unavailable, "start the keeper %s: %s", program, answer)
	}
	return nil
}

// findProgram returns the path of kuri-keeper.
func findProgram(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "kuri-keeper")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath("kuri-keeper")
	if err != nil {
		return "", fault.New(fault.NotFound, "kuri-keeper is neither beside kurid nor in PATH: %w", err)
	}
	return path, nil
}
