package manifest

import (
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The labels by which kubelets, and all tools that look at their pods, know what a container is.
const (
	LabelPodName       = "io.kubernetes.pod.name"
	LabelPodNamespace  = "io.kubernetes.pod.namespace"
	LabelPodUID        = "io.kubernetes.pod.uid"
	LabelContainerName = "io.kubernetes.container.name"
)

// Annotations of kubelets on containers. The grace period is in seconds.
const (
	AnnotationGrace        = "io.kubernetes.pod.terminationGracePeriod"
	AnnotationRestartCount = "io.kubernetes.container.restartCount"
)

// AnnotationRun marks the sandboxes that kuri run made, whose directories on the node kuri rm takes away.
const AnnotationRun = "kuri-cri.github.io/run"

// AnnotationPreStop has the preStop hook of a container that kuri run made, as JSON of Kubernetes' LifecycleHandler, with
// its ports as numbers. kuri stop and kuri down run it.
const AnnotationPreStop = "kuri-cri.github.io/pre-stop"

// maxHostname is Linux's limit, in bytes.
const maxHostname = 63

// defaultGrace is Kubernetes' default of terminationGracePeriodSeconds.
const defaultGrace = 30

// Facts is what a translation needs to know besides the manifest.
type Facts struct {
	UID         string                // of this run of the pod
	LogsDir     string                // the directory of all pods' logs, /var/log/kuri-run
	NodeName    string                // for spec.nodeName
	MemoryTotal int64                 // of the node, bytes
	CPUs        int                   // of the node
	NodeIPs     []string              // the node's addresses, the primary one first
	Resolver    *runtimeapi.DNSConfig // the node's own; needed for a pod with a dnsConfig only
	FirstID     uint32                // of the node's ids that are a pod's with a user namespace

	// Known once the sandbox runs:

	IPs               []string          // the pod's addresses, the primary one first
	VolumePaths       map[string]string // the host path of each volume, by the volume's name
	SubPaths          map[int]string    // of the container, the host path of each [SubPath], by its Mount
	VolumeImages      map[string]string // the id of the image of each volume that is one, by the volume's name
	HostsFile         string            // to be mounted at /etc/hosts; "" for the runtime's own
	RecursiveReadOnly bool              // whether the handler has recursive read-only mounts
}

// LogDir returns the directory of the logs of this run of the pod.
func (p *Pod) LogDir(f Facts) string {
	return filepath.Join(f.LogsDir, p.Namespace()+"_"+p.Name()+"_"+f.UID)
}

// Sandbox returns the configuration for RunPodSandbox.
func (p *Pod) Sandbox(f Facts) *runtimeapi.PodSandboxConfig {
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: p.Name(), Namespace: p.Namespace(), Uid: f.UID},
		LogDirectory: p.LogDir(f),
		DnsConfig:    p.dns(f.Resolver),
		PortMappings: p.portMappings(),
		Labels:       map[string]string{},
		Annotations:  map[string]string{},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: p.sandboxSecurity(f),
			Sysctls:         map[string]string{},
		},
	}
	if !p.api.Spec.HostNetwork {
		config.Hostname = p.hostname()
	}
	for k, v := range p.api.Labels {
		config.Labels[k] = v
	}
	for k, v := range p.api.Annotations {
		config.Annotations[k] = v
	}
	config.Labels[LabelPodName] = p.Name()
	config.Labels[LabelPodNamespace] = p.Namespace()
	config.Labels[LabelPodUID] = f.UID
	config.Annotations[AnnotationRun] = "v1"
	if sc := p.api.Spec.SecurityContext; sc != nil {
		for _, s := range sc.Sysctls {
			config.Linux.Sysctls[s.Name] = s.Value
		}
	}
	if o := p.api.Spec.Overhead; len(o) > 0 {
		config.Linux.Overhead = resourcesOf(corev1.ResourceRequirements{Requests: o, Limits: o})
	}
	return config
}

// hostname returns the pod's host name: as it says, or its name cut to what Linux takes, as a kubelet does.
func (p *Pod) hostname() string {
	if h := deref(p.api.Spec.HostnameOverride); h != "" {
		return h
	}
	if h := p.api.Spec.Hostname; h != "" {
		return h
	}
	name := p.Name()
	if len(name) > maxHostname {
		name = name[:maxHostname]
		for name[len(name)-1] == '-' || name[len(name)-1] == '.' {
			name = name[:len(name)-1]
		}
	}
	return name
}

// NeedsResolver tells whether Sandbox needs Facts.Resolver.
func (p *Pod) NeedsResolver() bool {
	return p.api.Spec.DNSConfig != nil && p.api.Spec.DNSPolicy != corev1.DNSNone
}

// dns returns nil where the runtime shall give the pod the node's resolver.
func (p *Pod) dns(node *runtimeapi.DNSConfig) *runtimeapi.DNSConfig {
	want := p.api.Spec.DNSConfig
	if want == nil {
		return nil
	}
	d := &runtimeapi.DNSConfig{}
	if p.NeedsResolver() && node != nil {
		d.Servers = slices.Clone(node.Servers)
		d.Searches = slices.Clone(node.Searches)
		d.Options = slices.Clone(node.Options)
	}
	d.Servers = unique(append(d.Servers, want.Nameservers...))
	d.Searches = unique(append(d.Searches, want.Searches...))
	for _, o := range want.Options {
		d.Options = slices.DeleteFunc(d.Options, func(have string) bool { return optionName(have) == o.Name })
		option := o.Name
		if o.Value != nil {
			option += ":" + *o.Value
		}
		d.Options = append(d.Options, option)
	}
	return d
}

func optionName(option string) string {
	for i, r := range option {
		if r == ':' {
			return option[:i]
		}
	}
	return option
}

// unique keeps the first of equal strings.
func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

var protocols = map[corev1.Protocol]runtimeapi.Protocol{
	corev1.ProtocolTCP:  runtimeapi.Protocol_TCP,
	corev1.ProtocolUDP:  runtimeapi.Protocol_UDP,
	corev1.ProtocolSCTP: runtimeapi.Protocol_SCTP,
}

// portMappings returns the pod's ports, with host_port 0 for those that are not to be seen on the node. A pod in the
// node's network needs none.
func (p *Pod) portMappings() []*runtimeapi.PortMapping {
	if p.api.Spec.HostNetwork {
		return nil
	}
	var out []*runtimeapi.PortMapping
	for _, c := range p.Containers() {
		if c.Init && !c.Sidecar {
			continue
		}
		for _, port := range c.api.Ports {
			out = append(out, &runtimeapi.PortMapping{
				Protocol:      protocols[port.Protocol],
				ContainerPort: port.ContainerPort,
				HostPort:      port.HostPort,
				HostIp:        port.HostIP,
			})
		}
	}
	return out
}
