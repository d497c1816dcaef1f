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

	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/process"
)

// returnLimit is how long a keeper may take to make anew what somebody has removed of its files.
const returnLimit = 10 * time.Second

// holderLimit is the same for a holder, which does nothing that takes time.
const holderLimit = 2 * time.Second

// findLiving looks for a holder or a keeper of the state directory whose sockets are gone from it: somebody has removed the
// directory while they live. It has them make their files anew and waits until the keeper answers. Found is false when
// neither lives. One that lives and cannot be reached is a [Hung]: beside it none must be started, for it has the containers.
func findLiving(ctx context.Context, stateDir string) (found bool, err error) {
	pids := living(stateDir)
	if len(pids) == 0 {
		return false, nil
	}
	slog.Warn("a keeper lives whose sockets are gone; it is asked to make them anew", "state", stateDir, "processes", pids)
	c := Connect(stateDir)
	defer c.Close()
	for limit := time.Now().Add(returnLimit); ; {
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGHUP)
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
			return false, nil // they have ended
		}
		if time.Now().After(limit) {
			return true, &Hung{fmt.Sprintf("the keeper of %s lives (%s) and does not answer at %s, also asked to make its files anew; "+
				"containers go on, nothing can be started or stopped; see keeper.log in that directory", stateDir, describe(pids), c.socket)}
		}
	}
}

// findHolder has a holder whose socket is gone make it anew, for it has the sockets that kurid serves. Where none lives, or
// none answers in time, kurid goes on without.
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
		if !asked {
			pids := slices.DeleteFunc(living(stateDir), func(pid int) bool { return process.Name(pid) != "kuri-holder" })
			if len(pids) == 0 {
				return
			}
			slog.Warn("the holder lives and its socket is gone; it is asked to make it anew", "state", stateDir, "process", pids[0], "err", err)
			unix.Kill(pids[0], unix.SIGHUP)
			asked = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// describe names processes and their states.
func describe(pids []int) string {
	var all []string
	for _, pid := range pids {
		all = append(all, fmt.Sprintf("process %d, state %s", pid, stateOf(pid)))
	}
	return strings.Join(all, "; ")
}

// living lists the holders and keepers of a state directory. They are looked for in the cgroup that is theirs alone, which no
// process of a container is in.
func living(stateDir string) (pids []int) {
	mounts, err := cgroupMounts()
	if err != nil {
		return nil
	}
	for _, m := range mounts {
		for _, dir := range []string{cgroupName(stateDir), filepath.Join("system.slice", cgroupName(stateDir)+".scope")} {
			body, err := os.ReadFile(filepath.Join(m.path, dir, "cgroup.procs"))
			if err != nil {
				continue
			}
			for field := range strings.FieldsSeq(string(body)) {
				if pid, err := strconv.Atoi(field); err == nil && serves(pid, stateDir) && !slices.Contains(pids, pid) {
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

// serves reports whether a process is a holder or a keeper of the state directory. One that has ended has no arguments.
func serves(pid int, stateDir string) bool {
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	name := process.Name(pid)
	return err == nil && (name == "kuri-holder" || name == "kuri-keeper") && bytes.Contains(args, []byte("\x00--state\x00"+stateDir+"\x00"))
}
