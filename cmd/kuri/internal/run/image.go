package run

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/manifest"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/stream"
)

// imageOptions are the flags of kuri run for an image. They have docker's names if docker has them.
type imageOptions struct {
	stdin, tty, detach                   bool
	keys                                 string
	env, envFiles, ports, volumes, tmpfs []string
	labels, annotations, hosts, dns      []string
	capAdd, capDrop                      []string
	network, pid, ipc, userns            string
	user, workdir, entrypoint, hostname  string
	memory, cpus, pull, runtime, stop    string
	grace                                int64
	privileged, readOnly                 bool

	names []string // names of these flags
}

func (o *imageOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	before := map[string]bool{}
	f.VisitAll(func(f *pflag.Flag) { before[f.Name] = true })
	f.BoolVarP(&o.stdin, "stdin", "i", false, "pass the input on to the container")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the container a terminal")
	f.BoolVarP(&o.detach, "detach", "d", false, "run in the background, as is done anyway without -i and --rm")
	stream.DetachFlag(cmd, &o.keys)
	f.StringArrayVarP(&o.env, "env", "e", nil, "variable, `NAME=VALUE`; NAME alone takes it from here")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "`FILE` with a NAME=VALUE in each line")
	f.StringArrayVarP(&o.ports, "publish", "p", nil, "port of the node for one of the container, `[[IP:]PORT:]PORT[/udp]`")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil,
		"path of the node in the container, `PATH:PATH[:ro]`; one PATH alone is a new directory")
	f.StringArrayVar(&o.tmpfs, "tmpfs", nil, "`PATH[:size=64m]` in memory")
	f.StringVar(&o.network, "network", "", "`host` for the node's network; else the pod has its own")
	f.StringVar(&o.pid, "pid", "", "`host` for the node's processes")
	f.StringVar(&o.ipc, "ipc", "", "`host` for the node's IPC")
	f.StringVar(&o.userns, "userns", "", "`private` for a user namespace of the pod's own")
	f.StringVarP(&o.user, "user", "u", "", "`USER[:GROUP]`, in place of the image's")
	f.StringVarP(&o.workdir, "workdir", "w", "", "working `DIRECTORY`")
	f.StringVar(&o.entrypoint, "entrypoint", "", "`COMMAND` in place of the image's entrypoint")
	f.StringVar(&o.hostname, "hostname", "", "`NAME` that the pod has for itself")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "label of the pod, `KEY=VALUE`")
	f.StringArrayVar(&o.annotations, "annotation", nil, "annotation of the pod, `KEY=VALUE`")
	f.StringArrayVar(&o.hosts, "add-host", nil, "line of /etc/hosts, `NAME:IP`")
	f.StringArrayVar(&o.dns, "dns", nil, "`IP` of a resolver, in place of the node's")
	f.StringVarP(&o.memory, "memory", "m", "", "limit of memory, `64m` or 64Mi")
	f.StringVar(&o.cpus, "cpus", "", "limit of CPUs, `1.5`")
	f.StringArrayVar(&o.capAdd, "cap-add", nil, "`CAPABILITY` to add")
	f.StringArrayVar(&o.capDrop, "cap-drop", nil, "`CAPABILITY` to drop, or ALL")
	f.BoolVar(&o.privileged, "privileged", false, "all capabilities and devices")
	f.BoolVar(&o.readOnly, "read-only", false, "the image's files cannot be changed")
	f.StringVar(&o.pull, "pull", "missing", "when to pull the image: `always`, missing or never")
	f.StringVar(&o.runtime, "runtime", "", "runtime `HANDLER`")
	f.StringVar(&o.stop, "stop-signal", "", "`SIGNAL` that stops the container")
	f.Int64Var(&o.grace, "stop-timeout", -1, "`SECONDS` between that and SIGKILL (default 30)")
	f.VisitAll(func(f *pflag.Flag) {
		if !before[f.Name] {
			o.names = append(o.names, f.Name)
		}
	})
}

// used returns one of the flags that were given, or "".
func (o *imageOptions) used(cmd *cobra.Command) string {
	for _, name := range o.names {
		if cmd.Flags().Changed(name) && name != "detach" {
			return name
		}
	}
	return ""
}

// pod returns the pod that the flags describe.
func (o *imageOptions) pod(name, image string, command []string, env func(string) string) (*manifest.Pod, error) {
	ref, err := reference.ParseDockerRef(image)
	if err != nil {
		return nil, cli.Usagef("%q is neither a file nor the name of an image: %w", image, err)
	}
	base := labelOf(filepath.Base(reference.Path(ref)))
	if name == "" {
		name = base[:min(len(base), 50)] + "-" + strings.ToLower(rand.Text()[:5])
	}
	b := &podBuilder{env: env, ctr: corev1.Container{Name: base, Image: image, Args: literal(command...), Stdin: o.stdin,
		StdinOnce: o.stdin && !o.detach, TTY: o.tty}}
	b.pod.Name, b.pod.Namespace = name, metav1.NamespaceDefault
	b.pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	for _, step := range []func(*imageOptions) error{b.process, b.variables, b.publish, b.mounts, b.namespaces, b.identity, b.limits, b.security} {
		if err := step(o); err != nil {
			return nil, cli.WrongUsage(err)
		}
	}
	b.pod.Spec.Containers = []corev1.Container{b.ctr}
	p, err := manifest.FromPod(b.pod)
	if err != nil {
		return nil, cli.WrongUsage(err)
	}
	return p, nil
}

// labelOf derives a DNS label from the name of an image.
func labelOf(s string) string {
	s = strings.Trim(regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(s), "-"), "-")
	return cmp.Or(s[:min(len(s), 63)], "container")
}

// podBuilder builds a pod from flags; each step handles some of them.
type podBuilder struct {
	pod corev1.Pod
	ctr corev1.Container
	env func(string) string
}

// literal escapes texts for a manifest, in which $(NAME) would be a reference.
func literal(texts ...string) []string {
	var out []string
	for _, t := range texts {
		out = append(out, strings.ReplaceAll(t, "$", "$$"))
	}
	return out
}

func (b *podBuilder) process(o *imageOptions) error {
	if o.entrypoint != "" {
		b.ctr.Command = literal(o.entrypoint)
	}
	b.ctr.WorkingDir = o.workdir
	switch o.pull {
	case "always":
		b.ctr.ImagePullPolicy = corev1.PullAlways
	case "missing":
		b.ctr.ImagePullPolicy = corev1.PullIfNotPresent
	case "never":
		b.ctr.ImagePullPolicy = corev1.PullNever
	default:
		return fmt.Errorf("--pull %q: expected always, missing or never", o.pull)
	}
	if o.stop != "" {
		s := o.stop
		if _, err := strconv.Atoi(s); err == nil {
			return fmt.Errorf("--stop-signal %q: expected a name such as SIGINT", s)
		}
		signal := corev1.Signal("SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG"))
		b.ctr.Lifecycle = &corev1.Lifecycle{StopSignal: &signal}
		b.pod.Spec.OS = &corev1.PodOS{Name: corev1.Linux}
	}
	if o.grace >= 0 {
		b.pod.Spec.TerminationGracePeriodSeconds = &o.grace
	}
	if o.runtime != "" {
		b.pod.Spec.RuntimeClassName = &o.runtime
	}
	return nil
}

func (b *podBuilder) variables(o *imageOptions) error {
	list := []string{}
	for _, file := range o.envFiles {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("--env-file: %w", err)
		}
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimLeft(strings.TrimRight(line, "\r\n"), " \t"); line != "" && line[0] != '#' {
				list = append(list, line)
			}
		}
	}
	for _, e := range append(list, o.env...) {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			if value = b.env(name); value == "" {
				continue // like docker: a variable that is not set here is not set there
			}
		}
		if name == "" {
			return fmt.Errorf("--env %q: expected NAME=VALUE", e)
		}
		b.ctr.Env = append(b.ctr.Env, corev1.EnvVar{Name: name, Value: literal(value)[0]})
	}
	return nil
}

func (b *podBuilder) publish(o *imageOptions) error {
	for _, p := range o.ports {
		ports, err := parsePublish(p)
		if err != nil {
			return err
		}
		b.ctr.Ports = append(b.ctr.Ports, ports...)
	}
	return nil
}

func (b *podBuilder) mounts(o *imageOptions) error {
	for _, v := range o.volumes {
		if err := b.volume(v); err != nil {
			return err
		}
	}
	for _, t := range o.tmpfs {
		path, options, _ := strings.Cut(t, ":")
		dir := &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}
		for option := range strings.SplitSeq(options, ",") {
			size, ok := strings.CutPrefix(option, "size=")
			if !ok {
				if option != "" && option != "rw" {
					return fmt.Errorf("--tmpfs %q: of the options only size= is known", t)
				}
				continue
			}
			q, err := cli.ParseBytes(size)
			if err != nil {
				return fmt.Errorf("--tmpfs %q: %w", t, err)
			}
			dir.SizeLimit = &q
		}
		b.mount(corev1.VolumeSource{EmptyDir: dir}, corev1.VolumeMount{MountPath: path})
	}
	return nil
}

// volume parses docker's PATH:PATH[:OPTIONS], or one PATH for a new directory.
func (b *podBuilder) volume(v string) error {
	parts := strings.Split(v, ":")
	if len(parts) == 1 {
		b.mount(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, corev1.VolumeMount{MountPath: v})
		return nil
	}
	if len(parts) > 3 || parts[0] == "" {
		return fmt.Errorf("--volume %q: expected PATH:PATH[:ro]", v)
	}
	if !strings.ContainsAny(parts[0][:1], "/.~") {
		return fmt.Errorf("--volume %q: there are no volumes with names: name a path of the node, ./%s or /srv/%s", v,
			parts[0], parts[0])
	}
	path, err := filepath.Abs(parts[0])
	if err != nil {
		return err
	}
	m := corev1.VolumeMount{MountPath: parts[1]}
	for option := range strings.SplitSeq(strings.Join(parts[2:], ""), ",") {
		switch option {
		case "", "rw", "z", "Z", "rprivate", "private":
		case "ro":
			m.ReadOnly = true
		case "rslave", "slave":
			mode := corev1.MountPropagationHostToContainer
			m.MountPropagation = &mode
		case "rshared", "shared":
			mode := corev1.MountPropagationBidirectional
			m.MountPropagation = &mode
		default:
			return fmt.Errorf("--volume %q: the option %q is not known: expected ro, rw, rslave or rshared", v, option)
		}
	}
	kind := corev1.HostPathUnset
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		kind = corev1.HostPathDirectoryOrCreate // as docker does
	}
	b.mount(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}}, m)
	return nil
}

func (b *podBuilder) mount(source corev1.VolumeSource, m corev1.VolumeMount) {
	m.Name = fmt.Sprintf("v%d", len(b.pod.Spec.Volumes))
	b.pod.Spec.Volumes = append(b.pod.Spec.Volumes, corev1.Volume{Name: m.Name, VolumeSource: source})
	b.ctr.VolumeMounts = append(b.ctr.VolumeMounts, m)
}

func (b *podBuilder) namespaces(o *imageOptions) error {
	spec := &b.pod.Spec
	for _, n := range []struct {
		flag, value string
		host        *bool
		own         []string
	}{
		{"network", o.network, &spec.HostNetwork, []string{"", "bridge", "default", "pod", "private"}},
		{"pid", o.pid, &spec.HostPID, []string{"", "private"}},
		{"ipc", o.ipc, &spec.HostIPC, []string{"", "private", "shareable"}},
	} {
		switch {
		case n.value == "host":
			*n.host = true
		case !slices.Contains(n.own, n.value):
			return fmt.Errorf("--%s %q: expected host, or nothing for the pod's own", n.flag, n.value)
		}
	}
	switch o.userns {
	case "", "host":
	case "private", "auto":
		own := false
		spec.HostUsers = &own
	default:
		return fmt.Errorf("--userns %q: expected private, or host", o.userns)
	}
	for i := range b.ctr.Ports { // nothing is mapped in the node's network
		if p := &b.ctr.Ports[i]; spec.HostNetwork {
			if p.HostPort != p.ContainerPort {
				return fmt.Errorf("--publish %d:%d: with --network host the container listens at the node's own ports", p.HostPort,
					p.ContainerPort)
			}
		}
	}
	return nil
}

func (b *podBuilder) identity(o *imageOptions) error {
	b.pod.Spec.Hostname = o.hostname
	for _, m := range []struct {
		flag string
		list []string
		to   *map[string]string
	}{{"label", o.labels, &b.pod.Labels}, {"annotation", o.annotations, &b.pod.Annotations}} {
		for _, e := range m.list {
			key, value, _ := strings.Cut(e, "=")
			if key == "" {
				return fmt.Errorf("--%s %q: expected KEY=VALUE", m.flag, e)
			}
			if *m.to == nil {
				*m.to = map[string]string{}
			}
			(*m.to)[key] = value
		}
	}
	for _, h := range o.hosts {
		host, ip, ok := strings.Cut(h, ":")
		if _, err := netip.ParseAddr(strings.Trim(ip, "[]")); !ok || err != nil {
			return fmt.Errorf("--add-host %q: expected NAME:IP", h)
		}
		b.pod.Spec.HostAliases = append(b.pod.Spec.HostAliases,
			corev1.HostAlias{IP: strings.Trim(ip, "[]"), Hostnames: []string{host}})
	}
	if len(o.dns) > 0 {
		b.pod.Spec.DNSPolicy, b.pod.Spec.DNSConfig = corev1.DNSNone, &corev1.PodDNSConfig{Nameservers: o.dns}
	}
	return nil
}

func (b *podBuilder) limits(o *imageOptions) error {
	limits := corev1.ResourceList{}
	if o.memory != "" {
		q, err := cli.ParseBytes(o.memory)
		if err != nil {
			return fmt.Errorf("--memory %q: %w", o.memory, err)
		}
		limits[corev1.ResourceMemory] = q
	}
	if o.cpus != "" {
		q, err := resource.ParseQuantity(o.cpus)
		if err != nil || q.Sign() <= 0 {
			return fmt.Errorf("--cpus %q: expected a number such as 1.5", o.cpus)
		}
		limits[corev1.ResourceCPU] = q
	}
	if len(limits) > 0 {
		b.ctr.Resources.Limits = limits
	}
	return nil
}

func (b *podBuilder) security(o *imageOptions) error {
	sc := &corev1.SecurityContext{}
	if o.privileged {
		sc.Privileged = &o.privileged
	}
	if o.readOnly {
		sc.ReadOnlyRootFilesystem = &o.readOnly
	}
	if len(o.capAdd)+len(o.capDrop) > 0 {
		sc.Capabilities = &corev1.Capabilities{}
		for _, name := range o.capAdd {
			sc.Capabilities.Add = append(sc.Capabilities.Add, capability(name))
		}
		for _, name := range o.capDrop {
			sc.Capabilities.Drop = append(sc.Capabilities.Drop, capability(name))
		}
	}
	user, group, hasGroup := strings.Cut(o.user, ":")
	if uid, err := strconv.ParseInt(user, 10, 32); err == nil {
		sc.RunAsUser = &uid
	}
	if hasGroup {
		gid, err := strconv.ParseInt(group, 10, 32)
		if err != nil || sc.RunAsUser == nil {
			return fmt.Errorf("--user %q: with a group both are numbers, such as 1000:1000", o.user)
		}
		sc.RunAsGroup = &gid
	}
	b.ctr.SecurityContext = sc
	return nil
}

func capability(name string) corev1.Capability {
	return corev1.Capability(strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
}

// userName returns the user if it is a name, which the CRI supports but a manifest does not.
func (o *imageOptions) userName() string {
	if _, err := strconv.Atoi(o.user); err == nil || strings.Contains(o.user, ":") {
		return ""
	}
	return o.user
}
