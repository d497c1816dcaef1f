package pod

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/record"
)

// A running container is never killed because its record cannot be read. So each record has a copy in the state
// directory. That is usually on another filesystem and lasts as long as the boot, as processes do. The copy is read if
// the record is damaged, or was lost with the root directory. It is removed before the record, so a copy alone is never
// the remainder of a removal. A pod or container that the keeper holds without either is salvaged: reported as far as
// the keeper and the bundle know it, with a reason, and left running.

func (p paths) podCopy(pod string) string { return p.podFile(pod, "pod.json") }
func (p paths) containerCopy(pod, c string) string {
	return filepath.Join(p.bundle(pod, c), "container.json")
}

// writeSandbox writes a sandbox's record and its copy. The error is that of the record; an error of the copy is logged.
func (p paths) writeSandbox(r *SandboxRecord) error {
	err, copyErr := record.WriteTwice(p.podRecord(r.ID), p.podCopy(r.ID), sandboxFormat, r.stored())
	noteCopy(copyErr)
	return err
}

// writeContainer writes a container's record and its copy. The error is that of the record; an error of the copy is
// logged.
func (p paths) writeContainer(r *ContainerRecord) error {
	err, copyErr := record.WriteTwice(p.containerRecord(r.SandboxID, r.ID), p.containerCopy(r.SandboxID, r.ID), containerFormat, r.stored())
	noteCopy(copyErr)
	return err
}

// noteCopy logs the error of writing a copy, which must not fail a verb. If the directory is missing, the pod is being
// removed: then it logs nothing.
func noteCopy(err error) {
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		slog.Warn("the copy of a record cannot be written", "err", err)
	}
}

// readRecord reads a record into r, or its copy if there is no readable record, and reports whether it used the copy. A
// damaged record is set aside, and the copy is written in its place. The error is of kind NotFound if neither exists,
// or ever did. Else it is the error of the record.
func readRecord[R any](path, copyPath string, format int, r *R) (copied bool, err error) {
	err = record.Read(path, format, r)
	if err == nil {
		return false, nil
	}
	damaged := !errors.Is(err, fault.NotFound)
	if damaged {
		slog.Error("a record cannot be read and is set aside", "err", err)
		if err := record.SetAside(path); err != nil {
			slog.Error("a damaged record cannot be set aside", "err", err)
		}
	}
	var fresh R
	if record.Read(copyPath, format, &fresh) != nil {
		if _, serr := os.Stat(path + ".damaged"); serr == nil && !damaged {
			err = fault.New(fault.Corrupt, "record %s was set aside as damaged", path)
		}
		return false, err
	}
	*r = fresh
	slog.Warn("a record was restored from its copy", "record", path, "copy", copyPath)
	err = os.MkdirAll(filepath.Dir(path), 0o711)
	if err == nil {
		err = record.Write(path, format, &fresh)
	}
	if err != nil {
		slog.Error("a record cannot be written again from its copy", "err", err)
	}
	return true, nil
}

// namesIn returns the names of the directories in dirs, sorted and without duplicates. A directory that cannot be read
// has none.
func namesIn(dirs ...string) []string {
	var names []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			slog.Error("records cannot be read", "dir", dir, "err", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// salvagedWhy is the message of a container whose record is lost.
const salvagedWhy = "its record in %s could not be read: its status comes from the keeper and the bundle; remove it so that it is created again"

// salvageSandbox takes over a pod that the keeper holds and that has no readable record.
func (p *Pods) salvageSandbox(held *api.Sandbox) *Sandbox {
	r := &SandboxRecord{ID: held.Id, State: Ready, BootID: p.bootID, Salvaged: true}
	if held.Namespaces["network"] != "" {
		r.NetnsPath = netnsPath(held.Id)
	}
	meta := &runtime.PodSandboxMetadata{Name: "unknown-" + held.Id[:min(len(held.Id), 13)]}
	parent := ""
	for _, c := range namesIn(filepath.Join(p.paths.podState(held.Id), "containers")) {
		if oci, err := p.readBundle(held.Id, c); err == nil && oci.Annotations["io.kubernetes.cri.sandbox-name"] != "" {
			a := oci.Annotations
			meta = &runtime.PodSandboxMetadata{Name: a["io.kubernetes.cri.sandbox-name"], Namespace: a["io.kubernetes.cri.sandbox-namespace"], Uid: a["io.kubernetes.cri.sandbox-uid"]}
			if oci.Linux != nil {
				parent = p.cgroupAbove(oci.Linux.CgroupsPath)
			}
			break
		}
	}
	own, _, _ := p.Driver.Parent("", held.Id, meta.Uid) // the parent of a pod whose caller gave none
	r.CgroupParent, r.PodCgroup, r.OwnCgroup = own, true, true
	if parent != "" && parent != own {
		r.CgroupParent, r.OwnCgroup = parent, false
		_, r.PodCgroup, _ = p.Driver.Parent(parent, held.Id, meta.Uid)
	}
	r.Config = message[*runtime.PodSandboxConfig]{&runtime.PodSandboxConfig{Metadata: meta, Labels: podLabels(meta)}}
	slog.Error("the record of a running pod is lost; the pod keeps running and can be stopped and removed", "pod", r.name())
	s := &Sandbox{paths: p.paths, view: &p.view, containers: make(map[string]*Container)}
	s.namespaces.Store(new(map[string]string))
	s.rec.Store(r)
	p.complain("write the record of "+r.name()+" anew", p.rewrite(p.paths.podDir(r.ID), func() error { return p.paths.writeSandbox(r) }))
	p.add(s)
	return s
}

// cgroupAbove returns the parent of a container's cgroup, in the driver's syntax.
func (p *Pods) cgroupAbove(cgroupsPath string) string {
	if p.Driver == cgroup.Systemd {
		slice, _, _ := strings.Cut(cgroupsPath, ":")
		return slice
	}
	return filepath.Dir(cgroupsPath)
}

// podLabels returns the labels that a kubelet sets on a pod, and by which it finds the pod.
func podLabels(m *runtime.PodSandboxMetadata) map[string]string {
	return map[string]string{"io.kubernetes.pod.name": m.GetName(), "io.kubernetes.pod.namespace": m.GetNamespace(), "io.kubernetes.pod.uid": m.GetUid()}
}

// salvageContainer takes over a container that the keeper holds and that has no readable record. The layers that it
// runs on are unknown, so all layers are held until it is removed.
func (p *Pods) salvageContainer(held *api.Container) {
	p.mu.RLock()
	s := p.sandboxes[held.SandboxId]
	p.mu.RUnlock()
	if s == nil {
		s = p.salvageSandbox(&api.Sandbox{Id: held.SandboxId})
	}
	r := &ContainerRecord{
		ID: held.Id, SandboxID: s.Record().ID, State: Running, Pid: int(held.Pid), CreatedAt: held.CreatedAt, StartedAt: held.StartedAt,
		StopSignal: 15, StopName: runtime.Signal_SIGNAL_SIGTERM.String(), ContainerRoot: p.ContainerRoot, Salvaged: true,
		Reason: "RecordDamaged", Message: fmt.Sprintf(salvagedWhy, p.paths.containerDir(s.Record().ID, held.Id)),
	}
	if held.State == api.State_CREATED {
		r.State = Created
	}
	name := "unknown-" + held.Id[:min(len(held.Id), 13)]
	if oci, err := p.readBundle(r.SandboxID, r.ID); err == nil {
		if called := oci.Annotations["io.kubernetes.cri.container-name"]; called != "" {
			name = called
		}
		r.ImageName = oci.Annotations["io.kubernetes.cri.image-name"]
		if oci.Linux != nil {
			r.CgroupsPath = oci.Linux.CgroupsPath
		}
	}
	labels := podLabels(s.Record().config().GetMetadata())
	labels["io.kubernetes.container.name"] = name
	r.Config = message[*runtime.ContainerConfig]{&runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: r.ImageName}, Labels: labels,
	}}
	slog.Error("the record of a running container is lost; the container keeps running and can be stopped and removed", "container", r.name(), "pod", s.Record().name(), "pid", r.Pid)
	c := newContainer(p.paths, s, r)
	s.noteCgroup(r)
	c.release = p.Layers.Hold(p.Layers.All())
	p.complain("write the record of "+r.name()+" anew", p.rewrite(p.paths.containerDir(r.SandboxID, r.ID), func() error { return p.paths.writeContainer(r) }))
	p.enterContainer(c)
}

// rewrite creates dir and then calls write.
func (p *Pods) rewrite(dir string, write func() error) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	return write()
}

// readBundle reads the OCI spec with which a container was created.
func (p *Pods) readBundle(pod, id string) (*specs.Spec, error) {
	body, err := os.ReadFile(filepath.Join(p.paths.bundle(pod, id), "config.json"))
	if err != nil {
		return nil, err
	}
	var oci specs.Spec
	return &oci, json.Unmarshal(body, &oci)
}

// Attached returns the ready pods that have their own network, each with its network result.
func (p *Pods) Attached() iter.Seq2[network.Pod, *network.Result] {
	return func(yield func(network.Pod, *network.Result) bool) {
		p.mu.RLock()
		var all []*SandboxRecord
		for _, s := range p.sandboxes {
			if r := s.Record(); r.State == Ready && r.Network != nil {
				all = append(all, r)
			}
		}
		p.mu.RUnlock()
		for _, r := range all {
			if !yield(p.networkPod(r), r.Network) {
				return
			}
		}
	}
}
