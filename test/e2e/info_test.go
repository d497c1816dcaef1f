package e2e

import (
	"encoding/json"
	"os"
	"strconv"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The fields that scripts read of crictl's inspect and inspectp exist and are true.
func TestVerboseInfo(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	type spec struct {
		Process struct{ Args []string }
		Linux   struct {
			CgroupsPath string
			Namespaces  []struct{ Type, Path string }
		}
	}
	container, err := s.Runtime.ContainerStatus(t.Context(),
		&runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var of struct {
		Pid         int
		SandboxID   string `json:"sandboxID"`
		RuntimeSpec spec
	}
	if err := json.Unmarshal([]byte(container.Info["info"]), &of); err != nil {
		t.Fatal(err)
	}
	if of.SandboxID != s.pod || len(of.RuntimeSpec.Process.Args) == 0 || of.RuntimeSpec.Process.Args[0] != "sleep" ||
		of.RuntimeSpec.Linux.CgroupsPath == "" {
		t.Errorf("%s", container.Info["info"])
	}
	netns := func(path string) string {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return strconv.FormatUint(inode(info), 10)
	}
	pod, err := s.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.pod,
		Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var box struct {
		Pid         int
		RuntimeSpec spec
		CniResult   struct {
			Interfaces map[string]struct{ IPConfigs []struct{ IP string } }
		}
	}
	if err := json.Unmarshal([]byte(pod.Info["info"]), &box); err != nil {
		t.Fatal(err)
	}
	inside := netns("/proc/" + strconv.Itoa(of.Pid) + "/ns/net")
	if box.Pid != of.Pid || netns("/proc/"+strconv.Itoa(box.Pid)+"/ns/net") != inside {
		t.Errorf("the pod's pid is %d, the container's %d", box.Pid, of.Pid)
	}
	if ns := box.RuntimeSpec.Linux.Namespaces; len(ns) != 1 || ns[0].Type != "network" || netns(ns[0].Path) != inside {
		t.Errorf("%v", ns)
	}
	if ips := box.CniResult.Interfaces["eth0"].IPConfigs; len(ips) == 0 || ips[0].IP != pod.Status.Network.Ip {
		t.Errorf("%v", ips)
	}
}

func inode(info os.FileInfo) uint64 { return info.Sys().(*syscall.Stat_t).Ino }
