package inspect

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// detail has data from the info of a verbose status, by the keys that containerd, CRI-O and Kuri
// have in common.
type detail struct {
	Pid         int
	RuntimeSpec specs.Spec
	Config      struct { // of a pod
		Hostname     string
		LogDirectory string `json:"logDirectory"`
	}
	Network struct{ By, Network string } // Kuri's own
}

func readDetail(info map[string]string) (d detail) {
	_ = json.Unmarshal([]byte(info["info"]), &d) // fields of other types are ignored
	return d
}

func readImageDetail(info map[string]string) (d struct{ ImageSpec imagespec.Image }) {
	_ = json.Unmarshal([]byte(info["info"]), &d)
	return d
}

// pod writes the page of a pod.
func (p *page) pod(s *runtimeapi.PodSandboxStatus, d detail, containers []*runtimeapi.ContainerStatus) {
	m := s.GetMetadata()
	p.row("pod", m.GetNamespace()+"/"+m.GetName())
	p.row("id", s.GetId())
	p.row("uid", m.GetUid())
	p.row("state", cli.PodState(s.GetState()))
	p.row("created", moment(s.GetCreatedAt()))
	if m.GetAttempt() > 0 {
		p.row("attempt", fmt.Sprint(m.GetAttempt()))
	}
	p.row("handler", s.GetRuntimeHandler())
	addresses := []string{s.GetNetwork().GetIp()}
	for _, ip := range s.GetNetwork().GetAdditionalIps() {
		addresses = append(addresses, ip.GetIp())
	}
	p.row("addresses", strings.Trim(strings.Join(addresses, ", "), ", "))
	p.row("network", strings.TrimSpace(d.Network.By+" "+d.Network.Network))
	p.row("hostname", cmp.Or(d.RuntimeSpec.Hostname, d.Config.Hostname))
	p.row("namespaces", namespaceText(s.GetLinux().GetNamespaces().GetOptions()))
	p.row("logs", d.Config.LogDirectory)
	if d.RuntimeSpec.Linux != nil {
		p.row("cgroup", d.RuntimeSpec.Linux.CgroupsPath)
	}
	rows := [][]string{{"NAME", "STATE", "ATTEMPT", "IMAGE", "AGE", "CONTAINER"}}
	for _, ct := range containers {
		rows = append(rows, []string{
			ct.GetMetadata().GetName(), cli.ContainerState(ct), fmt.Sprint(ct.GetMetadata().GetAttempt()),
			cli.ImageName(ct.GetImage(), false), cli.Age(ct.GetCreatedAt()), cli.TrimID(ct.GetId(), p.full),
		})
	}
	p.columns("containers", rows)
	p.pairs("labels", s.GetLabels(), "io.kubernetes.")
	p.pairs("annotations", s.GetAnnotations(), "kubectl.kubernetes.io/last-applied")
}

// namespaceText describes a pod's unusual namespaces: those of the node, a shared PID namespace,
// and a user namespace of its own.
func namespaceText(o *runtimeapi.NamespaceOption) string {
	if o == nil {
		return ""
	}
	var out []string
	for name, mode := range map[string]runtimeapi.NamespaceMode{"network": o.GetNetwork(), "pid": o.GetPid(),
		"ipc": o.GetIpc()} {
		if mode == runtimeapi.NamespaceMode_NODE {
			out = append(out, name+" of the node")
		}
	}
	if o.GetPid() == runtimeapi.NamespaceMode_POD {
		out = append(out, "pid shared by the containers")
	}
	if o.GetUsernsOptions() != nil && o.GetUsernsOptions().GetMode() == runtimeapi.NamespaceMode_POD {
		out = append(out, "user namespace of its own")
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// container writes the page of a container.
func (p *page) container(s *runtimeapi.ContainerStatus, pod string, d detail) {
	p.row("container", s.GetMetadata().GetName())
	p.row("id", s.GetId())
	p.row("pod", pod)
	p.row("image", cli.ImageName(s.GetImage(), true))
	p.row("image id", cmp.Or(s.GetImageId(), s.GetImageRef()))
	p.row("state", stateSince(s, d.Pid))
	p.row("message", s.GetMessage())
	p.row("created", moment(s.GetCreatedAt()))
	p.row("started", moment(s.GetStartedAt()))
	p.row("finished", moment(s.GetFinishedAt()))
	if a := s.GetMetadata().GetAttempt(); a > 0 {
		p.row("attempt", fmt.Sprint(a))
	}
	if process := d.RuntimeSpec.Process; process != nil {
		p.row("command", shellWords(process.Args))
		p.row("directory", process.Cwd)
		p.row("user", userText(process.User))
		if process.Terminal {
			p.row("terminal", "yes")
		}
	}
	p.row("stop signal", strings.TrimPrefix(nonzero(s.GetStopSignal(), runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT),
		"SIGNAL_"))
	p.row("limits", limits(s.GetResources().GetLinux(), d.RuntimeSpec.Linux))
	p.row("log", s.GetLogPath())
	if d.RuntimeSpec.Linux != nil {
		p.row("cgroup", d.RuntimeSpec.Linux.CgroupsPath)
	}
	p.list("security", securityLines(&d.RuntimeSpec))
	if d.RuntimeSpec.Process != nil {
		p.list("environment", d.RuntimeSpec.Process.Env)
	}
	p.columns("mounts", mountRows(s, d.RuntimeSpec.Mounts, p.full))
	p.pairs("labels", s.GetLabels(), "io.kubernetes.")
	p.pairs("annotations", s.GetAnnotations(), "io.kubernetes.container.")
}

// stateSince describes a container's state, with its process or its exit.
func stateSince(s *runtimeapi.ContainerStatus, pid int) string {
	text := cli.ContainerState(s)
	switch {
	case s.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING && pid > 0:
		text += fmt.Sprintf(" for %s, process %d", cli.Age(s.GetStartedAt()), pid)
	case s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED && s.GetStartedAt() > 0:
		text += fmt.Sprintf(", ran for %s", time.Duration(s.GetFinishedAt()-s.GetStartedAt()).Round(time.Millisecond))
	}
	return text
}

func nonzero(s, zero runtimeapi.Signal) string {
	if s == zero {
		return ""
	}
	return s.String()
}

func userText(u specs.User) string {
	text := fmt.Sprintf("%d:%d", u.UID, u.GID)
	var groups []string
	for _, g := range u.AdditionalGids {
		groups = append(groups, fmt.Sprint(g))
	}
	if len(groups) > 0 {
		text += ", groups " + strings.Join(groups, ", ")
	}
	return text
}

// limits describes the limits of a container from its status or, if that has none, from its specification.
func limits(r *runtimeapi.LinuxContainerResources, linux *specs.Linux) string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if r.GetMemoryLimitInBytes() > 0 {
		add("memory %s", cli.Size(uint64(r.MemoryLimitInBytes)))
	}
	if r.GetCpuQuota() > 0 && r.GetCpuPeriod() > 0 {
		add("cpu %.3g cores", float64(r.CpuQuota)/float64(r.CpuPeriod))
	}
	if r.GetCpuShares() > 0 {
		add("cpu shares %d", r.CpuShares)
	}
	if cpus := r.GetCpusetCpus(); cpus != "" {
		add("cpus %s", cpus)
	}
	if linux != nil && linux.Resources != nil && linux.Resources.Pids != nil && linux.Resources.Pids.Limit != nil &&
		*linux.Resources.Pids.Limit > 0 {
		add("processes %d", *linux.Resources.Pids.Limit)
	}
	if r.GetOomScoreAdj() != 0 {
		add("oom score %d", r.OomScoreAdj)
	}
	return strings.Join(out, ", ")
}

// securityLines describes the privileges of a container's processes.
func securityLines(spec *specs.Spec) []string {
	var out []string
	if process := spec.Process; process != nil {
		if caps := process.Capabilities; caps != nil {
			var names []string
			for _, c := range caps.Bounding {
				names = append(names, strings.TrimPrefix(c, "CAP_"))
			}
			out = append(out, "capabilities: "+cmp.Or(strings.Join(names, " "), "none"))
		}
		if process.NoNewPrivileges {
			out = append(out, "no new privileges")
		}
		if process.ApparmorProfile != "" {
			out = append(out, "AppArmor: "+process.ApparmorProfile)
		}
		if process.SelinuxLabel != "" {
			out = append(out, "SELinux: "+process.SelinuxLabel)
		}
		seccomp := "seccomp: unconfined"
		if spec.Linux != nil && spec.Linux.Seccomp != nil {
			seccomp = "seccomp: a filter, by default " +
				strings.ToLower(strings.TrimPrefix(string(spec.Linux.Seccomp.DefaultAction), "SCMP_ACT_"))
		}
		out = append(out, seccomp)
	}
	if spec.Root != nil && spec.Root.Readonly {
		out = append(out, "read-only root filesystem")
	}
	if spec.Linux != nil && len(spec.Linux.UIDMappings) > 0 {
		m := spec.Linux.UIDMappings[0]
		out = append(out, fmt.Sprintf("user namespace: %d to %d are %d to %d of the node", m.ContainerID,
			m.ContainerID+m.Size-1, m.HostID, m.HostID+m.Size-1))
	}
	return out
}

// mountRows has the requested mounts, or on a full page all mounts.
func mountRows(s *runtimeapi.ContainerStatus, all []specs.Mount, full bool) [][]string {
	rows := [][]string{{"IN THE CONTAINER", "FROM", "HOW"}}
	if full && len(all) > 0 {
		for _, m := range all {
			rows = append(rows, []string{m.Destination, m.Source, strings.Join(m.Options, ",")})
		}
		return rows
	}
	for _, m := range s.GetMounts() {
		how := []string{"rw"}
		if m.GetReadonly() {
			how[0] = "ro"
		}
		if m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			how = append(how, strings.ToLower(strings.TrimPrefix(m.GetPropagation().String(), "PROPAGATION_")))
		}
		rows = append(rows, []string{m.GetContainerPath(), cmp.Or(m.GetHostPath(), cli.ImageName(m.GetImage(), false)),
			strings.Join(how, ", ")})
	}
	return rows
}

// image writes the page of an image.
func (p *page) image(i *runtimeapi.Image, d struct{ ImageSpec imagespec.Image }) {
	p.list("names", i.GetRepoTags())
	p.list("digests", i.GetRepoDigests())
	p.row("id", i.GetId())
	p.row("size", cli.Size(i.GetSize()))
	if i.GetPinned() {
		p.row("pinned", "yes: a kubelet leaves it")
	}
	spec := d.ImageSpec
	if spec.Created != nil {
		p.row("made", moment(spec.Created.UnixNano()))
	}
	p.row("platform", strings.Trim(spec.OS+"/"+spec.Architecture, "/"))
	user := i.GetUsername()
	if i.GetUid() != nil {
		user = fmt.Sprint(i.GetUid().GetValue())
	}
	p.row("user", cmp.Or(spec.Config.User, user))
	p.row("entrypoint", shellWords(spec.Config.Entrypoint))
	p.row("command", shellWords(spec.Config.Cmd))
	p.row("directory", spec.Config.WorkingDir)
	p.row("stop signal", spec.Config.StopSignal)
	p.row("ports", strings.Join(slices.Sorted(maps.Keys(spec.Config.ExposedPorts)), ", "))
	p.row("volumes", strings.Join(slices.Sorted(maps.Keys(spec.Config.Volumes)), ", "))
	p.list("environment", spec.Config.Env)
	p.pairs("labels", spec.Config.Labels)
}
