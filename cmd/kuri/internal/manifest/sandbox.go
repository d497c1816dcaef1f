package manifest

import (
	"cmp"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The labels by which kubelets, and tools that read their pods, identify a container.
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

// Annotations of kuri run. The first marks its sandboxes, whose directories on the node kuri rm
// removes. The second has the preStop hook of a container: Kubernetes' LifecycleHandler as JSON,
// with ports as numbers; kuri stop and kuri down run it.
const (
	annotationRun     = "kuri-cri.io/run"
	annotationPreStop = "kuri-cri.io/pre-stop"
)

// The same annotations of pods that kuri 0.1 and 0.2 made.
const (
	oldAnnotationRun     = "kuri-cri.github.io/run"
	oldAnnotationPreStop = "kuri-cri.github.io/pre-stop"
)

// ByRun reports whether a sandbox with these annotations was made by kuri run.
func ByRun(annotations map[string]string) bool {
	return cmp.Or(annotations[annotationRun], annotations[oldAnnotationRun]) != ""
}

// PreStop returns the preStop hook that kuri run stored in a container's annotations, as JSON, or
// "" if it has none.
func PreStop(annotations map[string]string) string {
	return cmp.Or(annotations[annotationPreStop], annotations[oldAnnotationPreStop])
}

// maxHostname is Linux's limit, in bytes.
const maxHostname = 63

// defaultGrace is Kubernetes' default for terminationGracePeriodSeconds, in seconds.
const defaultGrace = 30

// Facts is the input of a translation apart from the manifest.
type Facts struct {
	UID         string                // of this run of the pod
	LogsDir     string                // directory of all pods' logs, /var/log/kuri-run
	NodeName    string                // for spec.nodeName
	MemoryTotal int64                 // of the node, bytes
	CPUs        int                   // of the node
	NodeIPs     []string              // the node's addresses, the primary one first
	Resolver    *runtimeapi.DNSConfig // the node's own; only needed for a pod with a dnsConfig
	FirstID     uint32                // first of the node's ids for a pod with a user namespace

	// Known once the sandbox runs:

	IPs               []string          // the pod's addresses, the primary one first
	VolumePaths       map[string]string // host path of each volume, by volume name
	SubPaths          map[int]string    // host path of each [SubPath] of the container, by its Mount
	VolumeImages      map[string]string // image id of each image volume, by volume name
	HostsFile         string            // to mount at /etc/hosts; "" for the runtime's own
	RecursiveReadOnly bool              // whether the handler supports recursive read-only mounts
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
	config.Annotations[annotationRun] = "v1"
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

// hostname returns the pod's host name, or its name truncated to Linux's limit, as in a kubelet.
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

// NeedsResolver reports whether Sandbox needs Facts.Resolver.
func (p *Pod) NeedsResolver() bool {
	return p.api.Spec.DNSConfig != nil && p.api.Spec.DNSPolicy != corev1.DNSNone
}

// dns returns the pod's DNS configuration, or nil if the runtime should give the pod the node's
// resolver.
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

// unique removes duplicates and keeps the first of equal strings.
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

// portMappings returns the pod's ports, with host_port 0 for those not published on the node. A pod
// in the node's network needs none.
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
