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

// The current format versions of the two records.
const (
	sandboxFormat   = 1
	containerFormat = 1
)

// CheckFormats returns an error of kind Precondition if a newer version of Kuri wrote a record of a pod or a container,
// or a copy of one. It changes nothing.
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

// State is the state of a sandbox or a container, see doc.go.
type State string

// The states. Ready and NotReady are those of a sandbox, Created to Exited those of a container, and Creating is of
// both.
const (
	Creating State = "creating"
	Ready    State = "ready"
	NotReady State = "notready"
	Created  State = "created"
	Running  State = "running"
	Exited   State = "exited"
)

// message stores a CRI message in a record, in protobuf's JSON form.
type message[M proto.Message] struct{ msg M }

// Message returns the message, nil if there is none. It must not be changed.
func (m message[M]) Message() M { return m.msg }

func (m message[M]) MarshalJSON() ([]byte, error) { return protojson.Marshal(m.msg) }

func (m *message[M]) UnmarshalJSON(b []byte) error {
	m.msg = m.msg.ProtoReflect().New().Interface().(M)
	// A record of a newer version of Kuri may have fields that this version's CRI lacks.
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m.msg)
}

// SandboxRecord is the record of a sandbox. It is immutable once it is published.
type SandboxRecord struct {
	ID        string                             `json:"id"`
	State     State                              `json:"state"`
	Config    message[*runtime.PodSandboxConfig] `json:"config"`
	Handler   string                             `json:"handler,omitempty"`
	Resolved  *Handler                           `json:"resolved_handler,omitempty"` // the handler as of the pod's creation; nil before 0.2
	CreatedAt int64                              `json:"created_at"`                 // nanoseconds since the epoch
	BootID    string                             `json:"boot_id"`                    // of the boot in which its processes live

	// NetnsPath is where the pod's own network namespace is pinned, "" if the pod uses the node's.
	NetnsPath string          `json:"netns_path,omitempty"`
	Network   *network.Result `json:"network,omitempty"`
	// CgroupParent is the parent of the containers' cgroups, in the syntax of the cgroup driver. PodCgroup is true if
	// it holds only this pod. OwnCgroup is true if the caller gave none: Kuri chose it and removes it.
	CgroupParent string `json:"cgroup_parent"`
	PodCgroup    bool   `json:"pod_cgroup,omitempty"`
	OwnCgroup    bool   `json:"own_cgroup,omitempty"`

	// CgroupRoots are the hierarchies in which the cgroup above the containers existed when the pod became ready.
	CgroupRoots []string `json:"cgroup_roots,omitempty"`
	// Gone is why the pod is not ready, if part of it is gone from the kernel. It is "" for a pod that was stopped.
	Gone string `json:"gone,omitempty"`
	// Salvaged is true if the record was lost and created again from the keeper's state.
	Salvaged bool `json:"salvaged,omitempty"`

	// Labels are the SELinux labels of those containers that request none, on a node with SELinux.
	Labels spec.Labels `json:"selinux,omitzero"`

	// Overhead and Resources are those of the last UpdatePodSandboxResources. Until then those of the configuration
	// apply.
	Overhead  message[*runtime.LinuxContainerResources] `json:"overhead,omitzero"`
	Resources message[*runtime.LinuxContainerResources] `json:"resources,omitzero"`

	configJSON json.RawMessage // of Config, while the sandbox is being created; else nil
}

// ContainerRecord is the record of a container. It is immutable once it is published.
type ContainerRecord struct {
	ID        string                            `json:"id"`
	SandboxID string                            `json:"sandbox_id"`
	State     State                             `json:"state"`
	Config    message[*runtime.ContainerConfig] `json:"config"`

	ImageID   string            `json:"image_id"`
	ImageName string            `json:"image_name"` // as the caller named it
	ImageRef  string            `json:"image_ref"`  // digest reference by which it can be pulled again, else its id
	Layers    []digest.Digest   `json:"layers"`     // diffIDs of its image, lowest first, then those of its image volumes
	User      spec.ResolvedUser `json:"user"`
	// VolumeRefs are the ids of the mounted images, by the index of the mount. They are what PullImage returns, which
	// critest expects in the status. Records of earlier versions have a digest reference, as ImageRef does.
	VolumeRefs map[int]string `json:"volume_refs,omitempty"`

	// Resources are those of the last UpdateContainerResources. Until then those of the configuration apply.
	Resources message[*runtime.LinuxContainerResources] `json:"resources,omitzero"`
	// Change is an UpdateContainerResources that has begun and whose end is not recorded.
	Change message[*runtime.LinuxContainerResources] `json:"resources_change,omitzero"`

	Labels spec.Labels `json:"selinux,omitzero"` // on a node with SELinux

	Salvaged bool `json:"salvaged,omitempty"` // as for a sandbox; Reason and Message have the cause

	// ContainerRoot is the container_root with which the container was created: its writable layer is below that. ""
	// means beside this record. Writable has the limits of the layer, nil for none.
	ContainerRoot string               `json:"container_root,omitempty"`
	Writable      *spec.WritableLimits `json:"writable,omitempty"`

	CgroupsPath string `json:"cgroups_path"` // as in the OCI spec
	LogPath     string `json:"log_path,omitempty"`
	StopSignal  int    `json:"stop_signal"`      // the kernel's number
	StopName    string `json:"stop_signal_name"` // the CRI's name of it

	// StartFailure is why the container cannot be started, "" if it can. A container that cannot has no process and no
	// cgroup.
	StartFailure string `json:"start_failure,omitempty"`

	CreatedAt  int64  `json:"created_at"` // nanoseconds since the epoch, 0 for not yet
	StartedAt  int64  `json:"started_at,omitempty"`
	FinishedAt int64  `json:"finished_at,omitempty"`
	Pid        int    `json:"pid,omitempty"` // in the host's PID namespace, while it lives
	ExitCode   int32  `json:"exit_code,omitempty"`
	Init       string `json:"init,omitempty"`    // creator of its first process, as reported by the keeper: "native", "libcontainer: WHY"
	Reason     string `json:"reason,omitempty"`  // one word: Completed, Error, OOMKilled, StartError, ContainerStatusUnknown
	Message    string `json:"message,omitempty"` // a sentence for people

	configJSON json.RawMessage // of Config, until the container has been started; else nil
}

// stored returns the form of the record on disk. The JSON of its configuration, which is most of the work, is encoded
// once for all states of a start.
func (r *SandboxRecord) stored() any {
	if r.configJSON == nil {
		return r
	}
	type fields SandboxRecord
	return struct {
		*fields
		Config json.RawMessage `json:"config"` // shadows that of fields
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

// encodeConfig returns the JSON of a configuration, nil if it cannot be encoded; then writing the record fails.
func encodeConfig(config json.Marshaler) json.RawMessage {
	text, err := config.MarshalJSON()
	if err != nil {
		return nil
	}
	return text
}

// paths returns the paths of the files of pods and containers.
type paths struct{ root, state string }

func (p paths) podDir(pod string) string    { return filepath.Join(p.root, "pods", pod) }
func (p paths) podRecord(pod string) string { return filepath.Join(p.podDir(pod), "pod.json") }
func (p paths) containerDir(pod, c string) string {
	return filepath.Join(p.podDir(pod), "containers", c)
}
func (p paths) containerRecord(pod, c string) string {
	return filepath.Join(p.containerDir(pod, c), "container.json")
}

// writable returns the directory of a container's writable layer, which contains upper and work.
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

// rootfs, volume and shm are below the keeper's private mount and exist only in a container's mount namespace.
func (p paths) rootfs(c string) string { return filepath.Join(p.state, "mounts", c, "rootfs") }
func (p paths) volume(c string, i int) string {
	return filepath.Join(p.state, "mounts", c, "volume-"+strconv.Itoa(i))
}
func (p paths) shm(pod string) string { return filepath.Join(p.state, "mounts", pod, "shm") }

func netnsPath(pod string) string { return namespace.Pin(pod) }
