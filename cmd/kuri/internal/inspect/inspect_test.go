package inspect

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

// The page of a container shows the OCI data that any runtime reports, and no foreign name can
// break its lines.
func TestContainerPage(t *testing.T) {
	st := &runtimeapi.ContainerStatus{
		Id: strings.Repeat("ab", 32), Metadata: &runtimeapi.ContainerMetadata{Name: "web\x1b[2J", Attempt: 3},
		State:     clitest.Exited,
		CreatedAt: 1e18, StartedAt: 1e18, FinishedAt: 1e18 + 2500e6, ExitCode: 137, Reason: "OOMKilled",
		Message: "it was\ntoo large",
		Image:   &runtimeapi.ImageSpec{Image: "nginx:1"}, ImageId: "sha256:0123", LogPath: "/var/log/x/0.log",
		Resources: &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20,
			CpuQuota: 150000, CpuPeriod: 100000, CpusetCpus: "0-1"}},
		Mounts: []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/srv", Readonly: true,
			Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}},
		Labels: map[string]string{"app": "web", "io.kubernetes.pod.name": "hidden"},
	}
	spec := `{"pid": 7, "runtimeSpec": {"process": {"args": ["sh", "-c", "echo 'hi'"], "cwd": "/srv", "user": {"uid": 5, "gid": 6, "additionalGids": [7]}, "env": ["A=b"],
		"noNewPrivileges": true, "apparmorProfile": "cri", "selinuxLabel": "x:y", "capabilities": {"bounding": ["CAP_CHOWN"]}},
		"root": {"readonly": true}, "linux": {"cgroupsPath": "/kubepods/x", "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}, "resources": {"pids": {"limit": 50}},
		"uidMappings": [{"containerID": 0, "hostID": 65536, "size": 65536}]}}}`
	p := &page{}
	p.container(st, "default/pod", readDetail(map[string]string{"info": spec}))
	for _, want := range []string{
		"container:     web?[2J\n", "state:         exited (137, OOMKilled), ran for 2.5s\n",
		"message:       it was?too large\n", "attempt:       3\n",
		`command:       sh -c 'echo '\''hi'\'''` + "\n", "directory:     /srv\n", "user:          5:6, groups 7\n",
		"limits:        memory 64.0 MiB, cpu 1.5 cores, cpus 0-1, processes 50\n", "cgroup:        /kubepods/x\n",
		"  capabilities: CHOWN\n", "  no new privileges\n",
		"  AppArmor: cri\n", "  SELinux: x:y\n", "  seccomp: a filter, by default errno\n", "  read-only root filesystem\n",
		"  user namespace: 0 to 65535 are 65536 to 131071 of the node\n", "  A=b\n", "  /data ", "ro, bidirectional",
		"  app=web\n",
	} {
		if !strings.Contains(p.String(), want) {
			t.Errorf("there is no %q in\n%s", want, p)
		}
	}
	if strings.Contains(p.String(), "hidden") || strings.Contains(p.String(), "\x1b") {
		t.Errorf("%s", p)
	}
	// A runtime that reports nothing beyond the API.
	for _, info := range []map[string]string{nil, {"info": "not JSON"}, {"info": `{"pid": "seven"}`}} {
		p := &page{}
		p.container(st, "default/pod", readDetail(info))
		if !strings.Contains(p.String(), "image:         nginx:1\n") || strings.Contains(p.String(), "command:") {
			t.Errorf("%v: %s", info, p)
		}
	}
}

func TestPodPage(t *testing.T) {
	st := &runtimeapi.PodSandboxStatus{
		Id: "0123456789abcdef", Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "shop", Name: "web"},
		State:   runtimeapi.PodSandboxState_SANDBOX_NOTREADY,
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0.2", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::2"}}},
		Linux:   &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE}}},
	}
	p := &page{}
	p.pod(st, detail{}, []*runtimeapi.ContainerStatus{{Id: "fedcba98765432100",
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, State: clitest.Running}})
	for _, want := range []string{"pod:           shop/web\n", "state:         not ready\n",
		"addresses:     10.0.0.2, fd00::2\n", "ipc of the node", "  c ", "fedcba987654\n"} {
		if !strings.Contains(p.String(), want) {
			t.Errorf("there is no %q in\n%s", want, p)
		}
	}
	p = &page{}
	p.pod(&runtimeapi.PodSandboxStatus{}, detail{}, nil)
	if strings.Contains(p.String(), "addresses") || strings.Contains(p.String(), "containers") {
		t.Errorf("%s", p)
	}
}

func TestImagePage(t *testing.T) {
	p := &page{}
	p.image(&runtimeapi.Image{Id: "sha256:ab", RepoTags: []string{"web:1"}, RepoDigests: []string{"web@sha256:cd"},
		Size: 2048, Pinned: true, Uid: &runtimeapi.Int64Value{Value: 5}},
		readImageDetail(map[string]string{"info": `{"imageSpec": {"os": "linux", "architecture": "arm64", "config": {"Cmd": ["a b"], "ExposedPorts": {"80/tcp": {}}}}}`}))
	for _, want := range []string{"  web:1\n", "  web@sha256:cd\n", "size:          2.0 KiB\n", "pinned:        yes",
		"platform:      linux/arm64\n", "user:          5\n", "command:       'a b'\n", "ports:         80/tcp\n"} {
		if !strings.Contains(p.String(), want) {
			t.Errorf("there is no %q in\n%s", want, p)
		}
	}
}
