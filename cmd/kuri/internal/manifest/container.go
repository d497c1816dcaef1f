package manifest

import (
	"encoding/json"
	"fmt"
	"path"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Container is one container of a pod.
type Container struct {
	Name    string
	Image   string
	Init    bool // runs before the containers that are not Init
	Sidecar bool // an init container with restartPolicy Always: it is started in order and not waited for

	api *corev1.Container
}

// Containers returns the pod's containers in the order in which they start, init containers first.
func (p *Pod) Containers() []Container {
	var out []Container
	for i := range p.api.Spec.InitContainers {
		c := &p.api.Spec.InitContainers[i]
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		out = append(out, Container{Name: c.Name, Image: c.Image, Init: true, Sidecar: sidecar, api: c})
	}
	for i := range p.api.Spec.Containers {
		c := &p.api.Spec.Containers[i]
		out = append(out, Container{Name: c.Name, Image: c.Image, api: c})
	}
	return out
}

// Pull determines when an image is pulled.
type Pull string

// The values of imagePullPolicy.
const (
	PullAlways  = Pull(corev1.PullAlways)
	PullMissing = Pull(corev1.PullIfNotPresent)
	PullNever   = Pull(corev1.PullNever)
)

// Pull returns the container's imagePullPolicy. Without one it is Always for an image with the tag
// latest or without tag and digest, and IfNotPresent for all others, as in Kubernetes.
func (c Container) Pull() Pull {
	return pullOf(c.Image, c.api.ImagePullPolicy)
}

// PullIsGiven reports whether the manifest has an imagePullPolicy for the container.
func (c Container) PullIsGiven() bool { return c.api.ImagePullPolicy != "" }

func pullOf(image string, policy corev1.PullPolicy) Pull {
	if policy != "" {
		return Pull(policy)
	}
	if strings.Contains(image, "@") {
		return PullMissing
	}
	_, tag, tagged := strings.Cut(path.Base(image), ":")
	if !tagged || tag == "latest" {
		return PullAlways
	}
	return PullMissing
}

// Ports returns the container's ports for people, such as "8080/TCP", or "80→8080/TCP" if it is
// published on port 80 of the node.
func (c Container) Ports() []string {
	var out []string
	for _, p := range c.api.Ports {
		s := fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol)
		if p.HostPort != 0 {
			s = fmt.Sprintf("%d→%s", p.HostPort, s)
		}
		out = append(out, s)
	}
	return out
}

// LogPath returns the path of the container's log, relative to the pod's log directory.
func (c Container) LogPath() string { return c.Name + "/0.log" }

// Image is the part of a container image's ImageStatus that the translation needs.
type Image struct {
	ID       string
	UID      *int64 // of the image's user, if it is a number
	Username string // of the image's user, if it is a name
}

// user returns the image's user. An image without a user runs as root.
func (i Image) user() (uid *int64, name string) {
	if i.UID == nil && i.Username == "" {
		return new(int64), ""
	}
	return i.UID, i.Username
}

// Config returns the configuration for CreateContainer.
func (p *Pod) Config(c Container, image Image, f Facts) (*runtimeapi.ContainerConfig, error) {
	env, err := p.env(c.api, f)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	security, err := p.containerSecurity(c.api, image, f)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	mounts, err := p.mounts(c.api, f)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	values := map[string]string{}
	for _, e := range env {
		values[e.Key] = string(e.Value)
	}
	config := &runtimeapi.ContainerConfig{
		Metadata:   &runtimeapi.ContainerMetadata{Name: c.Name},
		Image:      &runtimeapi.ImageSpec{Image: image.ID, UserSpecifiedImage: c.Image},
		Command:    expandAll(c.api.Command, values),
		Args:       expandAll(c.api.Args, values),
		WorkingDir: c.api.WorkingDir,
		Envs:       env,
		Mounts:     mounts,
		Labels: map[string]string{
			LabelPodName:       p.Name(),
			LabelPodNamespace:  p.Namespace(),
			LabelPodUID:        f.UID,
			LabelContainerName: c.Name,
		},
		Annotations: map[string]string{
			AnnotationGrace:        strconv.FormatInt(p.GraceSeconds(), 10),
			AnnotationRestartCount: "0",
		},
		LogPath:   c.LogPath(),
		Stdin:     c.api.Stdin,
		StdinOnce: c.api.StdinOnce,
		Tty:       c.api.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       linuxResources(&p.api, c.api, f.MemoryTotal),
			SecurityContext: security,
		},
	}
	if l := c.api.Lifecycle; l != nil && l.StopSignal != nil {
		config.StopSignal, _ = signal(*l.StopSignal)
	}
	if hook := c.preStop(); hook != nil {
		raw, err := json.Marshal(hook)
		if err != nil {
			return nil, fmt.Errorf("container %s: preStop: %w", c.Name, err)
		}
		config.Annotations[annotationPreStop] = string(raw)
	}
	return config, nil
}

// GraceSeconds returns the time between SIGTERM and SIGKILL for the pod's processes.
func (p *Pod) GraceSeconds() int64 {
	if g := p.api.Spec.TerminationGracePeriodSeconds; g != nil {
		return *g
	}
	return defaultGrace
}

// signal converts a signal name of Kubernetes to the CRI's: SIGRTMIN+1 is SIGNAL_SIGRTMINPLUS1.
func signal(name corev1.Signal) (runtimeapi.Signal, bool) {
	s := strings.NewReplacer("+", "PLUS", "-", "MINUS").Replace(string(name))
	n, ok := runtimeapi.Signal_value["SIGNAL_"+s]
	return runtimeapi.Signal(n), ok && n != 0
}

var propagations = map[corev1.MountPropagationMode]runtimeapi.MountPropagation{
	corev1.MountPropagationNone:            runtimeapi.MountPropagation_PROPAGATION_PRIVATE,
	corev1.MountPropagationHostToContainer: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
	corev1.MountPropagationBidirectional:   runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL,
}

func (p *Pod) mounts(c *corev1.Container, f Facts) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	hosts := f.HostsFile != ""
	for i, m := range c.VolumeMounts {
		if image, ok := f.VolumeImages[m.Name]; ok { // read-only, whatever the manifest says
			spec := &runtimeapi.ImageSpec{Image: image, UserSpecifiedImage: p.volumeImage(m.Name)}
			out = append(out, &runtimeapi.Mount{ContainerPath: m.MountPath, Image: spec, ImageSubPath: m.SubPath,
				Readonly: true})
			continue
		}
		host, ok := f.VolumePaths[m.Name]
		if !ok {
			return nil, fmt.Errorf("volume %s has not been made", m.Name)
		}
		if sub, ok := f.SubPaths[i]; ok {
			host = sub
		}
		mount := &runtimeapi.Mount{ContainerPath: m.MountPath, HostPath: host, Readonly: m.ReadOnly ||
			p.readOnlyVolume(m.Name), UidMappings: p.idMappings(f), GidMappings: p.idMappings(f)}
		if m.MountPropagation != nil {
			mount.Propagation = propagations[*m.MountPropagation]
		}
		if r := m.RecursiveReadOnly; r != nil {
			mount.RecursiveReadOnly = *r == corev1.RecursiveReadOnlyEnabled ||
				*r == corev1.RecursiveReadOnlyIfPossible && f.RecursiveReadOnly
		}
		hosts = hosts && path.Clean(m.MountPath) != "/etc/hosts"
		out = append(out, mount)
	}
	if hosts {
		out = append(out, &runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: f.HostsFile, UidMappings: p.idMappings(f),
			GidMappings: p.idMappings(f)})
	}
	return out, nil
}

// NeedsHosts reports whether the pod has hostAliases and so needs its own /etc/hosts; see Hosts.
func (p *Pod) NeedsHosts() bool { return len(p.api.Spec.HostAliases) > 0 }

// Hosts returns the contents of /etc/hosts for a pod with hostAliases. node is the node's own file,
// to which the aliases are added for a pod in the node's network.
func (p *Pod) Hosts(f Facts, node []byte) []byte {
	var b strings.Builder
	b.WriteString("# made by kuri run\n")
	if p.api.Spec.HostNetwork {
		b.Write(node)
		if len(node) > 0 && node[len(node)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		for _, ip := range f.IPs {
			fmt.Fprintf(&b, "%s\t%s\n", ip, p.hostname())
		}
	}
	for _, a := range p.api.Spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	return []byte(b.String())
}
