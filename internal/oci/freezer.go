package oci

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// Frozen reports whether the cgroup, or one above it, is frozen: its processes do not run, and a new one does not begin.
func (c Cgroup) Frozen() bool {
	if c.v2 {
		events, err := os.ReadFile(filepath.Join(c.procs, "cgroup.events"))
		return err == nil && bytes.Contains(events, []byte("frozen 1"))
	}
	state, err := os.ReadFile(filepath.Join(c.procs, "freezer.state"))
	return err == nil && strings.TrimSpace(string(state)) != "THAWED"
}

// awaitThaw returns when the cgroup is not frozen, or with the cause when ctx ends.
func (c Cgroup) awaitThaw(ctx context.Context) error {
	for pause := 5 * time.Millisecond; c.Frozen(); pause = min(2*pause, 100*time.Millisecond) { // v1 tells nobody
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
	return nil
}

// freeze asks for it where there is a freezer; it does not matter whether it succeeds.
func (c Cgroup) freeze() {
	if c.v2 {
		put(filepath.Join(c.procs, "cgroup.freeze"), "1")
		return
	}
	put(filepath.Join(c.procs, "freezer.state"), "FROZEN")
}

// pauseLimit is how long Pause waits for the processes to stand still. One in an uninterruptible sleep does so later.
const pauseLimit = time.Second

// Pause freezes the cgroup until resume. One that is frozen already, or has no freezer, is left as it is.
func (c Cgroup) Pause() (resume func()) {
	if c.procs == "" || c.Frozen() {
		return func() {}
	}
	c.freeze()
	for limit := time.Now().Add(pauseLimit); !c.standsStill() && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	file, text := c.thawing()
	return func() { put(file, text) }
}

// Thawing returns the file that lets the cgroup run after [Cgroup.Pause], and what to write into it, for another process to do
// should this one be killed; "" where Pause leaves it as it is.
func (c Cgroup) Thawing() (file, text string) {
	if c.procs == "" || c.Frozen() {
		return "", ""
	}
	return c.thawing()
}

func (c Cgroup) thawing() (file, text string) {
	if c.v2 {
		return filepath.Join(c.procs, "cgroup.freeze"), "0"
	}
	return filepath.Join(c.procs, "freezer.state"), "THAWED"
}

// standsStill reports whether all processes are frozen, not only asked to be.
func (c Cgroup) standsStill() bool {
	if c.v2 {
		return c.Frozen()
	}
	state, err := os.ReadFile(filepath.Join(c.procs, "freezer.state"))
	return err != nil || strings.TrimSpace(string(state)) == "FROZEN"
}

// thaw lets killed processes run, whoever has frozen them: on v1 they do not die before. A cgroup below may be frozen by
// itself. Where one above is, which is not ours to thaw, the processes are moved out of it.
func (c Cgroup) thaw() {
	file, value := "freezer.state", "THAWED"
	if c.v2 {
		file, value = "cgroup.freeze", "0"
	}
	filepath.WalkDir(c.procs, func(dir string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			put(filepath.Join(dir, file), value)
		}
		return nil
	})
	if c.v2 || !c.Frozen() { // on v2 a frozen process dies
		return
	}
	above := filepath.Dir(c.procs)
	for (Cgroup{procs: above}).Frozen() {
		above = filepath.Dir(above)
	}
	pids, _ := c.Pids()
	for _, pid := range pids {
		cgroups.WriteCgroupProc(above, pid) // one that is gone needs it no more
	}
}

// put writes text into a file that is there.
func put(path, text string) {
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		f.WriteString(text)
		f.Close()
	}
}

// SignalKill sends SIGKILL to every process of the cgroup, and lets frozen ones run so that they die of it. It does not
// wait for that.
func (c Cgroup) SignalKill() error {
	if c.procs == "" {
		return nil
	}
	if c.v2 {
		// Since 5.14: all at once, a fork bomb has no gap to slip through.
		if err := os.WriteFile(filepath.Join(c.procs, "cgroup.kill"), []byte("1"), 0); err == nil {
			return nil
		}
	}
	// A frozen process does not fork; killed ones die when they thaw.
	c.freeze()
	defer c.thaw()
	return c.Signal(unix.SIGKILL)
}
