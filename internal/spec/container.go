package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// translation is the state while building a container's spec.
type translation struct {
	in    Input
	spec  *specs.Spec
	notes []string
}

// Container returns the OCI runtime spec of a container, and notes: sentences for the log about
// requests that this node honours only in part. Errors name the field of ContainerConfig.
func Container(in Input) (spec *specs.Spec, notes []string, err error) {
	t := &translation{in: in, spec: &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: in.Rootfs},
		Process: &specs.Process{},
		Linux:   &specs.Linux{CgroupsPath: in.CgroupsPath, Resources: &specs.LinuxResources{}},
	}}
	for _, step := range []func() error{
		t.check,        // validation
		t.process,      // args, env, working directory, user
		t.ulimits,      // limits of each process
		t.capabilities, // before seccomp, whose default profile depends on them
		t.apparmor,     // what it may touch
		t.selinux,      // likewise
		t.seccomp,      // which system calls it may make
		t.namespaces,   // what it shares with the pod and the node
		t.mounts,       // what it sees
		t.devices,      // device nodes and access to them
		t.resources,    // limits of the container
		t.classes,      // classes of the node
		t.annotate,     // identity, for hooks and tools
	} {
		if err := step(); err != nil {
			return nil, nil, err
		}
	}
	return t.spec, t.notes, nil
}

// annotate identifies the container and its pod with the annotations of other runtimes, for OCI
// hooks and for tools that read bundles.
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
