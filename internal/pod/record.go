package pod

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/record"
	"github.com/kuri-cri/kuri/internal/spec"
)

// The newest format versions of the two records.
const (
	sandboxFormat   = 1
	containerFormat = 1
)

// CheckFormats returns an error of kind Precondition when a newer version of Kuri wrote a record of a pod or a container, or a
// copy of one. It changes nothing.
func CheckFormats(root, state string) error {
	for _, dir := range []string{root, state} {
		err := errors.Join(
			record.Newer(sandboxFormat, dir, "pods/*/pod.json"),
			record.Newer(containerFormat, dir, "pods/*/containers/*/container.json"),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// State is a sandbox's or a container's state, as doc.go draws it.
type State string

// The states of both; Ready and NotReady are a sandbox's, Created to Exited a container's.
const (
	Creating State = "creating"
	Ready    State = "ready"
	NotReady State = "notready"
	Created  State = "created"
	Running  State = "running"
	Exited   State = "exited"
)

// message stores a CRI message in a record, as the JSON that protobuf defines for it.
type message[M proto.Message] struct{ msg M }

// Message returns the message, nil if there is none. It must not be changed.
func (m message[M]) Message() M { return m.msg }

func (m message[M]) MarshalJSON() ([]byte, error) { return protojson.Marshal(m.msg) }

func (m *message[M]) UnmarshalJSON(b []byte) error {
	m.msg = m.msg.ProtoReflect().New().Interface().(M)
	// A record written by a newer Kuri may have fields that this one's CRI lacks.
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m.msg)
}

// SandboxRecord is all that is kept of a sandbox. It is immutable once it is published.
type SandboxRecord struct {
	ID        string                             `json:"id"`
	State     State                              `json:"state"`
	Config    message[*runtime.PodSandboxConfig] `json:"config"`
	Handler   string                             `json:"handler,omitempty"`
	Resolved  *Handler                           `json:"resolved_handler,omitempty"` // what Handler meant when the pod was made; nil before 0.2
	CreatedAt int64                              `json:"created_at"`                 // nanoseconds since the epoch
	BootID    string                             `json:"boot_id"`                    // of the boot in which its processes live

	// NetnsPath is where the pod's own network namespace is pinned, "" for the node's.
	NetnsPath string          `json:"netns_path,omitempty"`
	Network   *network.Result `json:"network,omitempty"`
	// CgroupParent is the parent of the containers' cgroups, in the syntax of the cgroup driver. PodCgroup tells that it
	// holds this pod alone; OwnCgroup that the caller gave none and that Kuri, which chose it, removes it.
	CgroupParent string `json:"cgroup_parent"`
	PodCgroup    bool   `json:"pod_cgroup,omitempty"`
	OwnCgroup    bool   `json:"own_cgroup,omitempty"`

	// CgroupRoots are the hierarchies in which the cgroup above the containers was there when the pod became ready.
	CgroupRoots []string `json:"cgroup_roots,omitempty"`
	// Gone says what of the pod is not in the kernel any more, so that it is not ready; "" for a pod that was stopped.
	Gone string `json:"gone,omitempty"`
	// Salvaged says that the record was lost, and made again from what the keeper holds.
	Salvaged bool `json:"salvaged,omitempty"`

	// Labels are those of its containers that ask for none, on a node with SELinux.
	Labels spec.Labels `json:"selinux,omitzero"`

	// Overhead and Resources are what UpdatePodSandboxResources has said last; until then the configuration's count.
	Overhead  message[*runtime.LinuxContainerResources] `json:"overhead,omitzero"`
	Resources message[*runtime.LinuxContainerResources] `json:"resources,omitzero"`

	configJSON json.RawMessage // of Config, while the sandbox is being made; else nil
}

// ContainerRecord is all that is kept of a container. It is immutable once it is published.
type ContainerRecord struct {
	ID        string                            `json:"id"`
	SandboxID string                            `json:"sandbox_id"`
	State     State                             `json:"state"`
	Config    message[*runtime.ContainerConfig] `json:"config"`

	ImageID   string            `json:"image_id"`
	ImageName string            `json:"image_name"` // as the caller named it
	ImageRef  string            `json:"image_ref"`  // a digest by which it can be pulled again, else its id
	Layers    []digest.Digest   `json:"layers"`     // diffIDs of its image, lowest first, then of the images that it mounts
	User      spec.ResolvedUser `json:"user"`
	// VolumeRefs are the ids of the images that are mounted, by the index of the mount: what PullImage answers, which critest
	// wants in the status. Records of earlier versions have a digest reference, as ImageRef does.
	VolumeRefs map[int]string `json:"volume_refs,omitempty"`

	// Resources are those that hold since the last UpdateContainerResources; until then the configuration's do.
	Resources message[*runtime.LinuxContainerResources] `json:"resources,omitzero"`
	// Change is an UpdateContainerResources that was begun and whose end is not recorded.
	Change message[*runtime.LinuxContainerResources] `json:"resources_change,omitzero"`

	Labels spec.Labels `json:"selinux,omitzero"` // on a node with SELinux

	Salvaged bool `json:"salvaged,omitempty"` // as of the sandbox: Reason and Message say why

	// ContainerRoot is the container_root with which it was made: its writable layer lies below that, "" for beside this
	// record. Writable are the layer's limits, nil for none.
	ContainerRoot string               `json:"container_root,omitempty"`
	Writable      *spec.WritableLimits `json:"writable,omitempty"`

	CgroupsPath string `json:"cgroups_path"` // as in the OCI spec
	LogPath     string `json:"log_path,omitempty"`
	StopSignal  int    `json:"stop_signal"`      // the kernel's number
	StopName    string `json:"stop_signal_name"` // the CRI's name of it

	// StartFailure says why it cannot be started, "" when it may be. It has no process and no cgroup then.
	StartFailure string `json:"start_failure,omitempty"`

	CreatedAt  int64  `json:"created_at"` // nanoseconds since the epoch, 0 for not yet
	StartedAt  int64  `json:"started_at,omitempty"`
	FinishedAt int64  `json:"finished_at,omitempty"`
	Pid        int    `json:"pid,omitempty"` // in the host's PID namespace, while it lives
	ExitCode   int32  `json:"exit_code,omitempty"`
	Init       string `json:"init,omitempty"`    // who made its first process, as the keeper tells it: "native", "libcontainer: WHY"
	Reason     string `json:"reason,omitempty"`  // one word: Completed, Error, OOMKilled, StartError, ContainerStatusUnknown
	Message    string `json:"message,omitempty"` // a sentence for people

	configJSON json.RawMessage // of Config, until the container has been started; else nil
}

// stored returns what is written of a record to the disk. The JSON of its configuration, which takes most of the work, is made
// once for all states of a start.
func (r *SandboxRecord) stored() any {
	if r.configJSON == nil {
		return r
	}
	type fields SandboxRecord
	return struct {
		*fields
		Config json.RawMessage `json:"config"` // in place of that of fields
	}{(*fields)(r), r.configJSON}
}

func (r *ContainerRecord) stored() any {
	if r.configJSON == nil {
		return r
	}
	type fields ContainerRecord
	return struct {
		*fields
		Config json.RawMessage `json:"config"`
	}{(*fields)(r), r.configJSON}
}

// encodeConfig returns the JSON of a configuration, nil if it cannot be encoded; the error is then the record's.
func encodeConfig(config json.Marshaler) json.RawMessage {
	text, err := config.MarshalJSON()
	if err != nil {
		return nil
	}
	return text
}

// paths tells where what belongs to a pod or a container lies.
type paths struct{ root, state string }

func (p paths) podDir(pod string) string    { return filepath.Join(p.root, "pods", pod) }
func (p paths) podRecord(pod string) string { return filepath.Join(p.podDir(pod), "pod.json") }
func (p paths) containerDir(pod, c string) string {
	return filepath.Join(p.podDir(pod), "containers", c)
}
func (p paths) containerRecord(pod, c string) string {
	return filepath.Join(p.containerDir(pod, c), "container.json")
}

// writable is the directory of a container's writable layer, which upper and work are in.
func (p paths) writable(r *ContainerRecord) string {
	if r.ContainerRoot != "" {
		return filepath.Join(r.ContainerRoot, "containers", r.ID)
	}
	return p.containerDir(r.SandboxID, r.ID)
}
func (p paths) upper(r *ContainerRecord) string { return filepath.Join(p.writable(r), "upper") }
func (p paths) work(r *ContainerRecord) string  { return filepath.Join(p.writable(r), "work") }

func (p paths) podState(pod string) string   { return filepath.Join(p.state, "pods", pod) }
func (p paths) bundle(pod, c string) string  { return filepath.Join(p.podState(pod), "containers", c) }
func (p paths) podFile(pod, f string) string { return filepath.Join(p.podState(pod), f) }

// rootfs, volume and shm lie below the keeper's private mount and exist only inside a container's mount namespace.
func (p paths) rootfs(c string) string { return filepath.Join(p.state, "mounts", c, "rootfs") }
func (p paths) volume(c string, i int) string {
	return filepath.Join(p.state, "mounts", c, "volume-"+strconv.Itoa(i))
}
func (p paths) shm(pod string) string { return filepath.Join(p.state, "mounts", pod, "shm") }

func netnsPath(pod string) string { return namespace.Pin(pod) }
