package cgroup

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Frozen reports whether the cgroup or one above it is frozen: its processes do not run, and a new
// one does not start.
func (g Group) Frozen() bool {
	return g.procs != "" && g.files().frozen(g.procs)
}

// AwaitThaw returns when the cgroup is not frozen, or with the cause when ctx ends.
func (g Group) AwaitThaw(ctx context.Context) error {
	for pause := 5 * time.Millisecond; g.Frozen(); pause = min(2*pause, 100*time.Millisecond) { // v1 does not notify
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
	return nil
}

// freeze requests a freeze if there is a freezer, and ignores errors.
func (g Group) freeze() {
	file, text := g.files().freezing()
	put(filepath.Join(g.procs, file), text)
}

// freezeLimit bounds Freeze's wait for the processes to stop. A process in an uninterruptible sleep
// stops later.
const freezeLimit = time.Second

// Freeze freezes the cgroup until thaw is called. It does nothing if the cgroup is already frozen
// or has no freezer.
func (g Group) Freeze() (thaw func()) {
	if g.procs == "" || g.Frozen() {
		return func() {}
	}
	g.freeze()
	for limit := time.Now().Add(freezeLimit); !g.files().still(g.procs) && time.Now().Before(limit); {
		time.Sleep(time.Millisecond)
	}
	file, text := g.thawing()
	return func() { put(file, text) }
}

// Thawing returns the file and the text to write for a thaw after [Group.Freeze]. Another process
// can do it if this one is killed. Both are "" if Freeze does nothing.
func (g Group) Thawing() (file, text string) {
	if g.procs == "" || g.Frozen() {
		return "", ""
	}
	return g.thawing()
}

func (g Group) thawing() (file, text string) {
	file, text = g.files().thawing()
	return filepath.Join(g.procs, file), text
}

// thaw lets killed processes run, whoever has frozen them, because they may not die before. It also
// thaws cgroups below. If a cgroup above is frozen, which must not be thawed, the processes are
// moved out of it.
func (g Group) thaw() {
	file, value := g.files().thawing()
	_ = filepath.WalkDir(g.procs, func(dir string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			put(filepath.Join(dir, file), value)
		}
		return nil
	})
	if g.files().killFrozen() || !g.Frozen() {
		return
	}
	above := filepath.Dir(g.procs)
	for g.files().frozen(above) {
		above = filepath.Dir(above)
	}
	pids, _ := g.Procs()
	for _, pid := range pids {
		_ = move(pid, above) // fails if the process has ended
	}
}

// put writes text to an existing file.
func put(path, text string) {
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		_, _ = f.WriteString(text)
		f.Close()
	}
}
