package server

import (
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/spec"
)

// This file turns records, snapshots and usage of package pod into messages of the CRI. Messages
// share labels, annotations and the like with the records that they were made from, so they must
// not be changed.

// eventTypes are the CRI's names for the events of package pod.
var eventTypes = map[pod.EventType]runtime.ContainerEventType{
	pod.EventCreated: runtime.ContainerEventType_CONTAINER_CREATED_EVENT,
	pod.EventStarted: runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
	pod.EventStopped: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT,
	pod.EventDeleted: runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
}

func eventMessage(e *pod.Event) *runtime.ContainerEventResponse {
	return &runtime.ContainerEventResponse{
		ContainerId:        e.ID,
		ContainerEventType: eventTypes[e.Type],
		CreatedAt:          e.At,
		PodSandboxStatus:   sandboxStatus(e.Sandbox),
		ContainersStatuses: containerStatuses(e.Snapshot),
	}
}

// podStatus is the answer to PodSandboxStatus, without the verbose information.
func podStatus(s *pod.Snapshot) *runtime.PodSandboxStatusResponse {
	return &runtime.PodSandboxStatusResponse{Status: sandboxStatus(s.Sandbox), ContainersStatuses: containerStatuses(s),
		Timestamp: s.At}
}

func containerStatuses(s *pod.Snapshot) []*runtime.ContainerStatus {
	out := make([]*runtime.ContainerStatus, len(s.Containers))
	for i, r := range s.Containers {
		out[i] = containerStatus(r)
	}
	return out
}

func sandboxStatus(r *pod.SandboxRecord) *runtime.PodSandboxStatus {
	cfg := r.Config.Message()
	st := &runtime.PodSandboxStatus{
		Id:        r.ID,
		Metadata:  cfg.GetMetadata(),
		State:     r.SandboxState(),
		CreatedAt: r.CreatedAt,
		Network:   &runtime.PodSandboxNetworkStatus{},
		Linux: &runtime.LinuxPodSandboxStatus{
			Namespaces: &runtime.Namespace{Options: cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()},
		},
		Labels:         cfg.GetLabels(),
		Annotations:    cfg.GetAnnotations(),
		RuntimeHandler: r.Handler,
	}
	if r.Network == nil || r.State != pod.Ready {
		return st
	}
	for i, ip := range r.Network.IPs {
		if i == 0 {
			st.Network.Ip = ip.String()
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtime.PodIP{Ip: ip.String()})
	}
	return st
}

// sandboxItem is a sandbox as ListPodSandbox has it.
func sandboxItem(r *pod.SandboxRecord) proto.Message {
	cfg := r.Config.Message()
	return &runtime.PodSandbox{
		Id:             r.ID,
		Metadata:       cfg.GetMetadata(),
		State:          r.SandboxState(),
		CreatedAt:      r.CreatedAt,
		Labels:         cfg.GetLabels(),
		Annotations:    cfg.GetAnnotations(),
		RuntimeHandler: r.Handler,
	}
}

func containerStatus(r *pod.ContainerRecord) *runtime.ContainerStatus {
	cfg := r.Config.Message()
	st := &runtime.ContainerStatus{
		Id:          r.ID,
		Metadata:    cfg.GetMetadata(),
		State:       r.ContainerState(),
		CreatedAt:   r.CreatedAt,
		StartedAt:   r.StartedAt,
		FinishedAt:  r.FinishedAt,
		ExitCode:    r.ExitCode,
		Image:       imageSpec(r),
		ImageRef:    r.ImageRef,
		ImageId:     r.ImageID,
		Reason:      r.Reason,
		Message:     r.Message,
		Labels:      cfg.GetLabels(),
		Annotations: cfg.GetAnnotations(),
		Mounts:      mounts(r),
		LogPath:     r.LogPath,
		User:        &runtime.ContainerUser{Linux: linuxUser(r.User)},
		StopSignal:  runtime.Signal(runtime.Signal_value[r.StopName]),
	}
	if res := r.CurrentResources(); res != nil {
		st.Resources = &runtime.ContainerResources{Linux: res}
	}
	return st
}

// mounts are those of the request; image mounts get the digest of their image.
func mounts(r *pod.ContainerRecord) []*runtime.Mount {
	asked := r.Config.Message().GetMounts()
	if len(r.VolumeRefs) == 0 {
		return asked
	}
	out := slices.Clone(asked)
	for i, ref := range r.VolumeRefs {
		out[i] = proto.CloneOf(asked[i])
		out[i].Image.ImageRef = ref
	}
	return out
}

func linuxUser(u spec.ResolvedUser) *runtime.LinuxContainerUser {
	out := &runtime.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, g := range u.AdditionalGIDs {
		out.SupplementalGroups = append(out.SupplementalGroups, int64(g))
	}
	return out
}

// containerItem is a container as ListContainers has it.
func containerItem(r *pod.ContainerRecord) proto.Message {
	cfg := r.Config.Message()
	return &runtime.Container{
		Id:           r.ID,
		PodSandboxId: r.SandboxID,
		Metadata:     cfg.GetMetadata(),
		Image:        imageSpec(r),
		ImageRef:     r.ImageRef,
		ImageId:      r.ImageID,
		State:        r.ContainerState(),
		CreatedAt:    r.CreatedAt,
		Labels:       cfg.GetLabels(),
		Annotations:  cfg.GetAnnotations(),
	}
}

func imageSpec(r *pod.ContainerRecord) *runtime.ImageSpec {
	asked := r.Config.Message().GetImage()
	return &runtime.ImageSpec{
		Image:              r.ImageName,
		Annotations:        asked.GetAnnotations(),
		UserSpecifiedImage: asked.GetUserSpecifiedImage(),
		RuntimeHandler:     asked.GetRuntimeHandler(),
	}
}

func containerStats(u pod.ContainerUsage) *runtime.ContainerStats {
	cfg := u.Record.Config.Message()
	stats := &runtime.ContainerStats{
		Attributes: &runtime.ContainerAttributes{
			Id:          u.Record.ID,
			Metadata:    cfg.GetMetadata(),
			Labels:      cfg.GetLabels(),
			Annotations: cfg.GetAnnotations(),
		},
		WritableLayer: diskUsage(u.Writable),
	}
	s := u.Sample
	if s == nil {
		return stats
	}
	stats.Cpu = cpuUsage(s, u.CPURate)
	stats.Memory = memoryUsage(s)
	stats.Swap = swapUsage(s)
	stats.Io = ioUsage(s)
	return stats
}

func sandboxStats(u pod.SandboxUsage) *runtime.PodSandboxStats {
	cfg := u.Record.Config.Message()
	linux := &runtime.LinuxPodSandboxStats{}
	for _, c := range u.Containers {
		linux.Containers = append(linux.Containers, containerStats(c))
	}
	if s := u.Sample; s != nil {
		linux.Cpu = cpuUsage(s, u.CPURate)
		linux.Memory = memoryUsage(s)
		if s.HasPids {
			linux.Process = &runtime.ProcessUsage{Timestamp: s.Time.UnixNano(), ProcessCount: value(s.Pids)}
		}
		linux.Io = ioUsage(s)
	}
	if !u.LinksAt.IsZero() {
		linux.Network = networkUsage(u.Links, u.LinksAt)
	}
	return &runtime.PodSandboxStats{
		Attributes: &runtime.PodSandboxAttributes{
			Id:          u.Record.ID,
			Metadata:    cfg.GetMetadata(),
			Labels:      cfg.GetLabels(),
			Annotations: cfg.GetAnnotations(),
		},
		Linux: linux,
	}
}

// encodeAll encodes each of the items.
func encodeAll[T, M any](items []T, encode func(T) M) []M {
	out := make([]M, len(items))
	for i, item := range items {
		out[i] = encode(item)
	}
	return out
}

func value(n uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: n} }

func diskUsage(u *pod.DiskUsage) *runtime.FilesystemUsage {
	if u == nil {
		return nil
	}
	return &runtime.FilesystemUsage{
		Timestamp:  u.At.UnixNano(),
		FsId:       &runtime.FilesystemIdentifier{Mountpoint: u.Filesystem},
		UsedBytes:  value(u.Bytes),
		InodesUsed: value(u.Inodes),
	}
}

func cpuUsage(s *cgroup.Sample, rate *uint64) *runtime.CpuUsage {
	if !s.HasCPU {
		return nil
	}
	u := &runtime.CpuUsage{Timestamp: s.Time.UnixNano(), UsageCoreNanoSeconds: value(s.CPUUsage), Psi: psi(s.CPUPSI)}
	if rate != nil {
		u.UsageNanoCores = value(*rate)
	}
	return u
}

func memoryUsage(s *cgroup.Sample) *runtime.MemoryUsage {
	if !s.HasMemory {
		return nil
	}
	u := &runtime.MemoryUsage{
		Timestamp:       s.Time.UnixNano(),
		UsageBytes:      value(s.Memory),
		WorkingSetBytes: value(s.WorkingSet),
		RssBytes:        value(s.RSS),
		PageFaults:      value(s.PageFaults),
		MajorPageFaults: value(s.MajorPageFaults),
		Psi:             psi(s.MemoryPSI),
	}
	if s.MemoryLimit > 0 {
		u.AvailableBytes = value(s.Available)
	}
	return u
}

func swapUsage(s *cgroup.Sample) *runtime.SwapUsage {
	if !s.HasSwap {
		return nil
	}
	u := &runtime.SwapUsage{Timestamp: s.Time.UnixNano(), SwapUsageBytes: value(s.Swap)}
	if s.HasSwapLimit {
		u.SwapAvailableBytes = value(s.SwapAvailable)
	}
	return u
}

func ioUsage(s *cgroup.Sample) *runtime.IoUsage {
	if s.IOPSI == nil {
		return nil
	}
	return &runtime.IoUsage{Timestamp: s.Time.UnixNano(), Psi: psi(s.IOPSI)}
}

func psi(p *cgroup.PSI) *runtime.PsiStats {
	if p == nil {
		return nil
	}
	one := func(p cgroup.Pressure) *runtime.PsiData {
		return &runtime.PsiData{Total: p.Total, Avg10: p.Avg10, Avg60: p.Avg60, Avg300: p.Avg300}
	}
	return &runtime.PsiStats{Some: one(p.Some), Full: one(p.Full)}
}

func networkUsage(links []link.Counter, at time.Time) *runtime.NetworkUsage {
	u := &runtime.NetworkUsage{Timestamp: at.UnixNano()}
	for _, l := range links {
		one := &runtime.NetworkInterfaceUsage{
			Name:     l.Name,
			RxBytes:  value(l.RxBytes),
			RxErrors: value(l.RxErrors),
			TxBytes:  value(l.TxBytes),
			TxErrors: value(l.TxErrors),
		}
		if l.Name == network.Interface {
			u.DefaultInterface = one
			continue
		}
		u.Interfaces = append(u.Interfaces, one)
	}
	return u
}
