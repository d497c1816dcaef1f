package server

import (
	"encoding/json"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/link"
	"github.com/kuri-cri/kuri/internal/pod"
)

// recordOf reads a record as kurid does from the disk.
func recordOf[R any](t *testing.T, body string) *R {
	t.Helper()
	r := new(R)
	if err := json.Unmarshal([]byte(body), r); err != nil {
		t.Fatal(err)
	}
	return r
}

// same compares a message with the JSON that protobuf defines for it.
func same[M proto.Message](t *testing.T, got M, want string) {
	t.Helper()
	m := got.ProtoReflect().New().Interface()
	if err := protojson.Unmarshal([]byte(want), m); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, m) {
		t.Errorf("got  %s\nwant %s", protojson.Format(got), protojson.Format(m))
	}
}

func TestEncodeSandbox(t *testing.T) {
	r := recordOf[pod.SandboxRecord](t, `{"id": "p", "state": "ready", "handler": "runc", "created_at": 7,
		"config": {"metadata": {"name": "web", "uid": "u", "namespace": "default"}, "labels": {"app": "web"}, "annotations": {"a": "b"},
			"linux": {"securityContext": {"namespaceOptions": {"pid": "CONTAINER"}}}},
		"network": {"by": "bridge", "network": "kuri0", "interface": "eth0", "ips": ["10.83.0.2", "fd00::2"]}}`)
	same(t, sandboxStatus(r), `{"id": "p", "metadata": {"name": "web", "uid": "u", "namespace": "default"}, "createdAt": 7,
		"network": {"ip": "10.83.0.2", "additionalIps": [{"ip": "fd00::2"}]},
		"linux": {"namespaces": {"options": {"pid": "CONTAINER"}}},
		"labels": {"app": "web"}, "annotations": {"a": "b"}, "runtimeHandler": "runc"}`)
	same(t, sandboxItem(r), `{"id": "p", "metadata": {"name": "web", "uid": "u", "namespace": "default"}, "createdAt": 7,
		"labels": {"app": "web"}, "annotations": {"a": "b"}, "runtimeHandler": "runc"}`)

	// A pod that is not ready has given its addresses back.
	r.State = pod.NotReady
	if got := sandboxStatus(r); got.Network.Ip != "" || got.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("not ready: %v", got)
	}
}

func TestEncodeContainer(t *testing.T) {
	r := recordOf[pod.ContainerRecord](t, `{"id": "c", "sandbox_id": "p", "state": "exited", "image_id": "sha256:1", "image_name": "busybox",
		"image_ref": "busybox@sha256:2", "volume_refs": {"1": "sha256:3"}, "user": {"UID": 1000, "GID": 1001, "AdditionalGIDs": [5]},
		"created_at": 1, "started_at": 2, "finished_at": 3, "exit_code": 4, "reason": "Error", "message": "m", "stop_signal_name": "SIGNAL_SIGINT", "log_path": "/l",
		"resources": {"cpuShares": 512},
		"config": {"metadata": {"name": "c1", "attempt": 2}, "labels": {"app": "web"}, "image": {"image": "asked", "userSpecifiedImage": "busybox:1"},
			"mounts": [{"hostPath": "/h", "containerPath": "/c"}, {"containerPath": "/i", "image": {"image": "volume"}}],
			"linux": {"resources": {"cpuShares": 2}}}}`)
	same(t, containerStatus(r), `{"id": "c", "metadata": {"name": "c1", "attempt": 2}, "state": "CONTAINER_EXITED", "createdAt": 1, "startedAt": 2, "finishedAt": 3,
		"exitCode": 4, "image": {"image": "busybox", "userSpecifiedImage": "busybox:1"}, "imageRef": "busybox@sha256:2", "imageId": "sha256:1",
		"reason": "Error", "message": "m", "labels": {"app": "web"}, "logPath": "/l", "stopSignal": "SIGNAL_SIGINT",
		"mounts": [{"hostPath": "/h", "containerPath": "/c"}, {"containerPath": "/i", "image": {"image": "volume", "imageRef": "sha256:3"}}],
		"user": {"linux": {"uid": 1000, "gid": 1001, "supplementalGroups": [5]}}, "resources": {"linux": {"cpuShares": 512}}}`)
	if asked := r.Config.Message().GetMounts()[1].GetImage().GetImageRef(); asked != "" {
		t.Errorf("the record has got the image reference %q", asked)
	}
	same(t, containerItem(r), `{"id": "c", "podSandboxId": "p", "metadata": {"name": "c1", "attempt": 2}, "state": "CONTAINER_EXITED", "createdAt": 1,
		"image": {"image": "busybox", "userSpecifiedImage": "busybox:1"}, "imageRef": "busybox@sha256:2", "imageId": "sha256:1", "labels": {"app": "web"}}`)
}

func TestEncodeUsage(t *testing.T) {
	c := recordOf[pod.ContainerRecord](t, `{"id": "c", "config": {"metadata": {"name": "c1"}}}`)
	at, rate := time.Unix(0, 9), uint64(70)
	ended := pod.ContainerUsage{Record: c, Writable: &pod.DiskUsage{At: at, Filesystem: "/root", Bytes: 1, Inodes: 2}}
	same(t, containerStats(ended), `{"attributes": {"id": "c", "metadata": {"name": "c1"}},
		"writableLayer": {"timestamp": "9", "fsId": {"mountpoint": "/root"}, "usedBytes": {"value": "1"}, "inodesUsed": {"value": "2"}}}`)

	p := recordOf[pod.SandboxRecord](t, `{"id": "p", "config": {"metadata": {"name": "web"}}}`)
	sample := &cgroup.Sample{Time: at, HasCPU: true, CPUUsage: 5, HasMemory: true, Memory: 6, WorkingSet: 4, RSS: 3,
		MemoryLimit: 10, Available: 6, HasPids: true, Pids: 8}
	same(t, sandboxStats(pod.SandboxUsage{
		Record: p, Sample: sample, CPURate: &rate,
		Containers: []pod.ContainerUsage{{Record: c, Sample: &cgroup.Sample{Time: at}}},
		Links:      []link.Counter{{Name: "net1", RxBytes: 1}, {Name: network.Interface, TxBytes: 2}}, LinksAt: at,
	}), `{"attributes": {"id": "p", "metadata": {"name": "web"}}, "linux": {
		"cpu": {"timestamp": "9", "usageCoreNanoSeconds": {"value": "5"}, "usageNanoCores": {"value": "70"}},
		"memory": {"timestamp": "9", "usageBytes": {"value": "6"}, "workingSetBytes": {"value": "4"}, "rssBytes": {"value": "3"},
			"availableBytes": {"value": "6"}, "pageFaults": {}, "majorPageFaults": {}},
		"process": {"timestamp": "9", "processCount": {"value": "8"}},
		"network": {"timestamp": "9", "defaultInterface": {"name": "eth0", "rxBytes": {}, "rxErrors": {}, "txBytes": {"value": "2"}, "txErrors": {}},
			"interfaces": [{"name": "net1", "rxBytes": {"value": "1"}, "rxErrors": {}, "txBytes": {}, "txErrors": {}}]},
		"containers": [{"attributes": {"id": "c", "metadata": {"name": "c1"}}}]}}`)
}
