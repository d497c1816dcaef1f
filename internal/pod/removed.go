package pod

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Removed is a file or a directory that a ready pod or a running container uses and that someone else removed.
type Removed struct {
	Name, Path string
	Problem    string // a sentence without the final period
	Advice     string // "" if Restore is set

	// Restore creates it again, unless the pod or container has ended meanwhile. It is nil if that is not possible, or
	// only for a running kurid.
	Restore func(context.Context) error
}

// Removed returns what was removed of the pods and containers of this boot. Sources of volumes may be on a file server
// that does not answer: those of which nothing is known after a second are not in the list, and the error names the
// first.
func (v *Inventory) Removed() (all []Removed, err error) {
	slow := &slowly{until: time.Now().Add(volumeLook)}
	for _, id := range v.SandboxIDs() {
		if r := v.Sandboxes[id]; r.State == Ready && r.OfThisBoot() {
			all = append(all, v.removedOfPod(r)...)
		}
	}
	for _, id := range v.ContainerIDs() {
		r := v.Containers[id]
		s := v.Sandboxes[r.SandboxID]
		if r.State != Running || r.Salvaged || s == nil || !s.OfThisBoot() {
			continue
		}
		all = append(all, v.removedOfContainer(r)...)
		all = append(all, removedVolumes(r, slow)...)
	}
	return all, slow.err
}

const whenStarted = "start kurid: it restores them"

func (v *Inventory) removedOfPod(r *SandboxRecord) (all []Removed) {
	lost := func(path, problem string) {
		x := Removed{Name: r.name(), Path: path, Problem: problem, Advice: whenStarted}
		if v.live != nil {
			x.Restore, x.Advice = func(context.Context) error { return v.live.restoreSandbox(r.ID) }, ""
		}
		all = append(all, x)
	}
	if path := v.at.podRecord(r.ID); missing(path) {
		lost(path, "its record was removed; if the copy in the state directory is lost as well, the pod is reported as unknown")
	}
	var gone []string
	for _, name := range []string{"pod.json", "resolv.conf", "hosts", "hostname"} {
		if missing(v.at.podFile(r.ID, name)) {
			gone = append(gone, name)
		}
	}
	if len(gone) > 0 {
		lost(v.at.podState(r.ID), "these files of the pod were removed: "+strings.Join(gone, ", ")+
			"; running containers keep those that they have")
	}
	return all
}

func (v *Inventory) removedOfContainer(r *ContainerRecord) (all []Removed) {
	advice := fmt.Sprintf("kuri rm -f id:%.13s removes the container; a kubelet makes another by itself", r.ID)
	lost := func(path, problem string, restore func(context.Context, *Pods) error) {
		x := Removed{Name: r.name(), Path: path, Problem: problem, Advice: advice}
		if restore != nil {
			x.Advice = whenStarted
			if v.live != nil {
				x.Restore, x.Advice = func(ctx context.Context) error { return restore(ctx, v.live) }, ""
			}
		}
		all = append(all, x)
	}
	for _, path := range []string{v.at.containerRecord(r.SandboxID, r.ID), v.at.containerCopy(r.SandboxID, r.ID)} {
		if missing(path) {
			lost(path, "its record was removed; if the other copy is lost as well, the container is reported as unknown",
				func(_ context.Context, p *Pods) error { return p.restoreContainer(r.ID) })
		}
	}
	if path := filepath.Join(v.at.bundle(r.SandboxID, r.ID), "config.json"); missing(path) {
		lost(path, "its OCI configuration was removed: it runs, and commands that are executed in it may fail", nil)
	}
	if path := v.at.upper(r); missing(path) {
		lost(path, "its writable layer was removed: the files that it has written are lost, and writing may fail", nil)
	}
	if r.LogPath != "" && missing(r.LogPath) {
		lost(r.LogPath, "its log was removed: what it prints goes to a file that nobody can open",
			func(ctx context.Context, p *Pods) error { return p.restoreLog(ctx, r.ID) })
		if v.live == nil {
			all[len(all)-1].Advice = "start kurid, and ask again with --fix"
		}
	}
	return all
}

func removedVolumes(r *ContainerRecord, slow *slowly) (all []Removed) {
	for _, m := range r.config().GetMounts() {
		if m.GetHostPath() == "" || !slow.missing(m.GetHostPath()) {
			continue
		}
		all = append(all, Removed{
			Name: r.name(), Path: m.GetHostPath(),
			Problem: fmt.Sprintf("the source of its volume at %s was removed: it keeps what it has mounted, and no "+
				"other container can mount that", m.GetContainerPath()),
			Advice: fmt.Sprintf("restore the volume, then kuri rm -f id:%.13s; a kubelet makes another container by itself", r.ID),
		})
	}
	return all
}

// missing reports whether there is no file at path. An error that says something else is none.
func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// volumeLook is the time for looking at the sources of all volumes.
const volumeLook = time.Second

// slowly looks at paths on file systems that may not answer, until its time is over.
type slowly struct {
	until time.Time
	err   error // the first path that did not answer
}

// missing reports whether there is certainly no file at path. A look that hangs is left behind.
func (s *slowly) missing(path string) bool {
	if s.err != nil {
		return false
	}
	found := make(chan bool, 1)
	go func() { found <- missing(path) }()
	select {
	case gone := <-found:
		return gone
	case <-time.After(time.Until(s.until)):
		s.err = fault.New(fault.Unavailable, "the file system of %s does not answer", path)
		return false
	}
}

// restoreSandbox writes the record and the files of a ready sandbox again.
func (p *Pods) restoreSandbox(id string) error {
	s, err := p.Sandbox(id)
	if err != nil {
		return err
	}
	if err := s.begin(); err != nil {
		return err
	}
	defer s.creates.Done() // a stop, and so a removal, waits
	for _, dir := range []string{p.paths.podDir(id), p.paths.podState(id)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make the pod's directory: %w", err)
		}
	}
	if err := s.become(Ready, func(*SandboxRecord) {}); err != nil {
		return err
	}
	r := s.Record()
	return p.writeFiles(r, r.Network)
}

// restoreContainer writes the record of a container that has not exited again.
func (p *Pods) restoreContainer(id string) error {
	c, err := p.Container(id)
	if err != nil {
		return err
	}
	c.mu.Lock() // a removal makes it exited first
	defer c.mu.Unlock()
	r := c.Record()
	if r.State == Exited {
		return fault.New(fault.Precondition, "it has exited meanwhile")
	}
	for _, dir := range []string{p.paths.containerDir(r.SandboxID, r.ID), p.paths.bundle(r.SandboxID, r.ID)} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make the container's directory: %w", err)
		}
	}
	return c.becomeLocked(r.State, nil)
}

// restoreLog has the keeper create the log of a running container again.
func (p *Pods) restoreLog(ctx context.Context, id string) error {
	c, err := p.running(id)
	if err != nil {
		return err
	}
	if err := makeLogDir(c.sandbox.Record().config().GetLogDirectory(), c.Record().LogPath); err != nil {
		return err
	}
	return p.ReopenLog(ctx, id)
}
