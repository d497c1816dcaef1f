package keeper

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/process"
)

// returnLimit bounds the time in which a keeper restores its removed files.
const returnLimit = 10 * time.Second

// holderLimit is the same for a holder, whose work takes no time.
const holderLimit = 2 * time.Second

// findLiving looks for a running holder or keeper whose sockets were removed from the state
// directory. It makes them restore their files and waits until the keeper answers. found is false
// if neither runs. The error is a [Hung] if one runs but does not answer; no second one must be
// started then, because the first one has the containers.
func findLiving(ctx context.Context, stateDir string) (found bool, err error) {
	pids := living(stateDir)
	if len(pids) == 0 {
		return false, nil
	}
	slog.Warn("the sockets of a running keeper were removed; asking it to restore them", "state", stateDir,
		"processes", pids)
	c := Connect(stateDir)
	defer c.Close()
	for limit := time.Now().Add(returnLimit); ; {
		for _, pid := range pids {
			hangUp(pid)
		}
		for again := time.Now().Add(time.Second); time.Now().Before(again); {
			conn, err := dial(ctx, c.socket)
			if err == nil {
				conn.Close()
				return true, nil
			}
			select {
			case <-ctx.Done():
				return true, ctx.Err()
			case <-time.After(20 * time.Millisecond):
			}
		}
		if pids = living(stateDir); len(pids) == 0 {
			return false, nil // they have exited
		}
		if time.Now().After(limit) {
			return true, &Hung{fmt.Sprintf("the keeper of %s runs (%s) but does not answer at %s, even after it was asked to restore its files; "+
				"containers keep running, but nothing can be started or stopped; see keeper.log in that directory", stateDir,
				describe(pids), c.socket)}
		}
	}
}

// findHolder makes a running holder restore its socket if that was removed, because the holder has
// kurid's listening sockets. If no holder runs, or it does not answer in time, kurid continues
// without it.
func findHolder(ctx context.Context, stateDir string) {
	h := holder.Connect(stateDir)
	defer h.Close()
	asked := false
	for limit := time.Now().Add(holderLimit); time.Now().Before(limit); {
		_, err := os.Lstat(filepath.Join(stateDir, "holder.sock"))
		if err == nil {
			if _, err = h.Info(); err == nil {
				return
			}
		}
		pids := livingHolders(stateDir)
		if len(pids) == 0 {
			return
		}
		if !asked {
			slog.Warn("the socket of the running holder was removed; asking it to restore it", "state", stateDir,
				"process", pids[0], "err", err)
			asked = hangUp(pids[0])
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// hangUp sends SIGHUP to a keeper or holder that takes it, and reports whether it did. The signal
// would kill one that has just been executed: a keeper that becomes the holder, or the next keeper.
func hangUp(pid int) bool {
	if !takesHangUp(pid) {
		return false
	}
	return unix.Kill(pid, unix.SIGHUP) == nil
}

// takesHangUp reports whether a process handles SIGHUP: it catches the signal, or blocks it to read it (signalfd).
func takesHangUp(pid int) bool {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(body)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigBlk" && name != "SigCgt" {
			continue
		}
		if mask, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64); err == nil && mask&(1<<(unix.SIGHUP-1)) != 0 {
			return true
		}
	}
	return false
}

// describe returns the process ids and states, for an error.
func describe(pids []int) string {
	var all []string
	for _, pid := range pids {
		all = append(all, fmt.Sprintf("process %d, state %s", pid, stateOf(pid)))
	}
	return strings.Join(all, "; ")
}

// livingHolders returns the running holders of a state directory.
func livingHolders(stateDir string) []int {
	return slices.DeleteFunc(living(stateDir), func(pid int) bool { return process.Name(pid) != "kuri-holder" })
}

// living returns the running holders and keepers of a state directory. It looks in their own
// cgroup, in which no process of a container can be.
func living(stateDir string) []int {
	all := cgroup.ProcsEverywhere(cgroupName(stateDir), filepath.Join("system.slice", cgroupName(stateDir)+".scope"))
	return slices.DeleteFunc(all, func(pid int) bool { return !serves(pid, stateDir) })
}

// serves reports whether a process is a holder or keeper of the state directory. A zombie has no
// arguments and is neither.
func serves(pid int, stateDir string) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	name := process.Name(pid)
	return err == nil && (name == "kuri-holder" || name == "kuri-keeper") &&
		bytes.Contains(args, []byte("\x00--state\x00"+stateDir+"\x00"))
}
