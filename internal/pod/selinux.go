package pod

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// labels allocates SELinux labels. A pod that requests no level gets a level of two categories that no other pod has,
// so that pods cannot use each other's files. The zero value has no labels allocated.
type labels struct {
	mu     sync.Mutex
	levels map[string]string // by the id of the pod or container that holds it
}

// take returns the labels that a pod or container requests, and keeps their level from being allocated again until
// release. If the request has no level, level is used. Error kinds: Invalid (the policy does not know the context),
// Precondition (the policy has no contexts for containers).
func (l *labels) take(id string, o *runtime.SELinuxOption, level string) (spec.Labels, error) {
	const field = "linux.security_context.selinux_options"
	asked := spec.LabelOptions(o)
	options := asked
	if o.GetLevel() == "" && level != "" {
		options = append(asked[:len(asked):len(asked)], "level:"+level)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	process, mount, err := label.InitLabels(options)
	if err != nil {
		return spec.Labels{}, fault.New(fault.Invalid, "%s: %w", field, err)
	}
	if process == "" && len(asked) > 0 {
		return spec.Labels{}, fault.New(fault.Precondition, "%s: this node's SELinux policy has no contexts for containers (contexts/lxc_contexts); install the package container-selinux", field)
	}
	l.hold(id, process)
	for _, context := range []string{process, mount} {
		if context == "" {
			continue
		}
		if err := selinux.SecurityCheckContext(context); err != nil {
			l.drop(id)
			return spec.Labels{}, fault.New(fault.Invalid, "%s: this node's SELinux policy does not know the context %s", field, context)
		}
	}
	return spec.Labels{Process: process, Mount: mount}, nil
}

// keep has the pod or container hold labels that are already allocated: before a restart, or to its pod.
func (l *labels) keep(id string, had spec.Labels) {
	if had.Process == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := selinux.ReserveLabelV2(had.Process); err != nil && !errors.Is(err, selinux.ErrMCSAlreadyExists) {
		slog.Error("an SELinux level may be given to another pod as well", "label", had.Process, "err", err)
	}
	l.hold(id, had.Process)
}

// release releases the level that the pod or container holds through take or keep. It may be called again.
func (l *labels) release(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(id)
}

func (l *labels) hold(id, context string) {
	if level := levelOf(context); level != "" {
		if l.levels == nil {
			l.levels = make(map[string]string)
		}
		l.levels[id] = level
	}
}

// drop frees a level once no one holds it any more.
func (l *labels) drop(id string) {
	level, ok := l.levels[id]
	if !ok {
		return
	}
	delete(l.levels, id)
	for _, other := range l.levels {
		if other == level {
			return
		}
	}
	selinux.ReleaseLabel("u:r:t:" + level) // only the level of a context is reserved
}

// levelOf returns the level of a context, "" if it has none.
func levelOf(context string) string {
	c, err := selinux.NewContext(context)
	if err != nil {
		return ""
	}
	return c["level"]
}

// labelPod allocates the labels of a pod and stores them in its record.
func (p *Pods) labelPod(r *SandboxRecord) (err error) {
	if p.Node.SELinux {
		r.Labels, err = p.labels.take(r.ID, r.config().GetLinux().GetSecurityContext().GetSelinuxOptions(), "")
	}
	return err
}

// labelContainer allocates the labels of a container. If its level differs from its pod's, it also labels the files of
// the pod so that the container can use them.
func (p *Pods) labelContainer(s *SandboxRecord, r *ContainerRecord) error {
	if !p.Node.SELinux {
		return nil
	}
	options := r.config().GetLinux().GetSecurityContext().GetSelinuxOptions()
	if len(spec.LabelOptions(options)) == 0 && s.Labels.Process != "" {
		p.labels.keep(r.ID, s.Labels)
		r.Labels = s.Labels
		return nil
	}
	made, err := p.labels.take(r.ID, options, levelOf(s.Labels.Process))
	if err != nil {
		return err
	}
	r.Labels = made
	if levelOf(made.Process) == levelOf(s.Labels.Process) {
		return nil
	}
	return p.labelFiles(s, true)
}

// labelFiles labels the pod's files in /etc for containers of the pod's level, or of any level if shared.
func (p *Pods) labelFiles(r *SandboxRecord, shared bool) error {
	if r.Labels.Mount == "" {
		return nil
	}
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		if err := label.Relabel(p.paths.podFile(r.ID, name), r.Labels.Mount, shared); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("label the pod's %s: %w", name, err)
		}
	}
	return nil
}

// relabel sets the container's label on the volumes that request it, and on all their files. It leaves a filesystem
// that stores no labels as it is.
func (p *Pods) relabel(r *ContainerRecord, mounts []spec.ResolvedMount) error {
	if !p.Node.SELinux && slices.ContainsFunc(r.config().GetMounts(), (*runtime.Mount).GetSelinuxRelabel) {
		// A kubelet requests it for nearly every volume: log it only once.
		p.noRelabel.Do(func() {
			slog.Info("SELinux is not enabled on this node: volumes are not relabelled", "container", r.name())
		})
	}
	if r.Labels.Mount == "" {
		return nil
	}
	for i, m := range r.config().GetMounts() {
		if !m.GetSelinuxRelabel() || m.GetImage() != nil {
			continue
		}
		err := label.Relabel(mounts[i].Source, r.Labels.Mount, false)
		if errors.Is(err, unix.ENOTSUP) {
			slog.Warn("a volume's filesystem stores no SELinux labels", "container", r.name(), "volume", mounts[i].Source)
			continue
		}
		if err != nil {
			return fault.New(fault.Precondition, "mounts[%d].selinux_relabel: relabel %s: %w", i, mounts[i].Source, err)
		}
	}
	return nil
}
