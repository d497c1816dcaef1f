package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// translation is one container's spec while it is being put together.
type translation struct {
	in    Input
	spec  *specs.Spec
	notes []string
}

// Container returns the OCI runtime spec of a container, and notes: sentences, for the log, about what this node honours
// in part only. Errors name the field of ContainerConfig.
func Container(in Input) (spec *specs.Spec, notes []string, err error) {
	t := &translation{in: in, spec: &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: in.Rootfs},
		Process: &specs.Process{},
		Linux:   &specs.Linux{CgroupsPath: in.CgroupsPath, Resources: &specs.LinuxResources{}},
	}}
	for _, step := range []func() error{
		t.check,        // what is wrong, or not there yet
		t.process,      // args, env, working directory, user
		t.ulimits,      // how much each process may use
		t.capabilities, // what the process may do; before seccomp, whose default profile depends on it
		t.apparmor,     // what it may touch
		t.selinux,      // likewise
		t.seccomp,      // which system calls it may make
		t.namespaces,   // what it shares with the pod and the node
		t.mounts,       // what it sees
		t.devices,      // which devices it may use
		t.resources,    // how much it may use
		t.classes,      // likewise, by the classes that the node has
		t.annotate,     // who it is
	} {
		if err := step(); err != nil {
			return nil, nil, err
		}
	}
	return t.spec, t.notes, nil
}

// annotate names the container and its pod as the other runtimes do, for OCI hooks and for tools that read bundles.
func (t *translation) annotate() error {
	pod := t.in.Pod.GetMetadata()
	t.spec.Annotations = map[string]string{
		"io.kubernetes.cri.container-type":    "container",
		"io.kubernetes.cri.container-id":      t.in.ContainerID,
		"io.kubernetes.cri.container-name":    t.in.Container.GetMetadata().GetName(),
		"io.kubernetes.cri.image-name":        t.in.ImageName,
		"io.kubernetes.cri.sandbox-id":        t.in.PodID,
		"io.kubernetes.cri.sandbox-name":      pod.GetName(),
		"io.kubernetes.cri.sandbox-namespace": pod.GetNamespace(),
		"io.kubernetes.cri.sandbox-uid":       pod.GetUid(),
	}
	return nil
}
