package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/v1/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// killable builds the programs with a kurid that can be killed at its steps, and returns their directory.
func killable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-tags", "seccomp failpoint", "-o", filepath.Join(dir, "kurid"),
		"github.com/kuri-cri/kuri/cmd/kurid")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build kurid: %v\n%s", err, out)
	}
	for _, name := range []string{"kuri-keeper", "kuri-holder"} {
		if err := os.Symlink(harness.Bin(name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// workflowSteps returns the steps of kurid's workflows at which it can be killed, read from the source.
func workflowSteps(t *testing.T) (all []string) {
	t.Helper()
	for _, room := range []string{"pod", "network", "network/*", "image", "layer"} {
		files, err := filepath.Glob(filepath.Join("../../internal", room, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`failpoint\.At\("(.*)"\)`).FindAllStringSubmatch(string(body), -1) {
				all = append(all, m[1])
			}
		}
	}
	if len(all) < 55 {
		t.Fatalf("there are %d steps", len(all))
	}
	return all
}

// stepper drives a daemon that is killed at a step as a kubelet does: it repeats calls that were cut off.
type stepper struct {
	*harness.Daemon
	t     *testing.T
	step  string
	point string // the file that names the step; removed when kurid was killed there
	kills int
}

// of reports whether the step belongs to one of these workflows.
func (s *stepper) of(workflows ...string) bool {
	return slices.ContainsFunc(workflows, func(w string) bool { return strings.HasPrefix(s.step, w+": ") })
}

// again makes a call, and repeats it if kurid was killed meanwhile.
func (s *stepper) again(what string, call func() error) {
	s.t.Helper()
	for tries := 0; ; tries++ {
		err := call()
		if err == nil {
			return
		}
		if tries == 2 || !s.revive() {
			s.t.Fatalf("%s: %v", what, err)
		}
	}
}

// revive starts kurid again if it has been killed.
func (s *stepper) revive() bool {
	if _, err := os.Stat(s.point); err == nil || s.kills > 0 {
		return false
	}
	s.kills++
	s.Revive(s.t)
	return true
}

// pull removes the image and pulls it again.
func (s *stepper) pull(image string) {
	t, ctx := s.t, s.t.Context()
	asked := &runtimeapi.ImageSpec{Image: image}
	s.again("remove the image", func() error {
		_, err := s.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: asked})
		return err
	})
	there := func() bool {
		resp, err := s.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: asked})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Image != nil
	}
	if there() {
		t.Error("the image is there after its removal")
	}
	s.again("pull", func() error {
		_, err := s.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: asked})
		return err
	})
	if !there() {
		t.Error("the image is not there after it was pulled")
	}
}

// setPodCIDR sets the range of the pods' addresses.
func (s *stepper) setPodCIDR(cidr string) {
	s.again("set the pod CIDR", func() error {
		_, err := s.Runtime.UpdateRuntimeConfig(s.t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}},
		})
		return err
	})
	for _, file := range []string{filepath.Join(s.State, "network", "podcidr.json"),
		filepath.Join(s.Root, "cni", "podcidr.json")} {
		if body, err := os.ReadFile(file); err != nil || !strings.Contains(string(body), cidr) {
			s.t.Errorf("%s has %s, %v; want %s", file, body, err, cidr)
		}
	}
}

// resize changes the resources of a container and of its pod. The status agrees with the kernel,
// whether or not a call that was cut off is repeated.
func (s *stepper) resize(pod, container string) {
	const resized = 256 << 20
	t, ctx := s.t, s.t.Context()
	told := func() int64 {
		resp, err := s.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: container})
		if err != nil {
			t.Fatal(err)
		}
		bytes := resp.Status.Resources.GetLinux().GetMemoryLimitInBytes()
		has := limit(t, container, "memory.limit_in_bytes", "memory.max")
		if unlimited := has == "max" || len(has) == 19; has != fmt.Sprint(bytes) && !(unlimited && bytes == 0) {
			t.Errorf("the status tells a memory limit of %d bytes, the kernel has %s", bytes, has)
		}
		return bytes
	}
	req := &runtimeapi.UpdateContainerResourcesRequest{ContainerId: container,
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: resized}}
	if _, err := s.Runtime.UpdateContainerResources(ctx, req); err != nil && !s.revive() {
		t.Fatal(err)
	}
	told()
	s.again("change the container's resources", func() error {
		_, err := s.Runtime.UpdateContainerResources(ctx, req)
		return err
	})
	if bytes := told(); bytes != resized {
		t.Errorf("the status tells a memory limit of %d bytes, want %d", bytes, resized)
	}
	s.again("change the pod's resources", func() error {
		_, err := s.Runtime.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
			PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 2 * resized},
		})
		return err
	})
}

// The range of the pods' addresses in the story: the usual one, and that of the step which changes it.
const (
	usualCIDR   = "10.123.0.0/24"
	anotherCIDR = "10.124.0.0/24"
)

// story runs through the life of a pod with an image of its own, and checks the state at its end.
func (s *stepper) story(image string) {
	t, ctx := s.t, s.t.Context()
	if s.of("pull", "unpack layer", "remove image", "remove layer") {
		s.pull(image)
	}
	cidr, handler := usualCIDR, ""
	if s.of("set pod CIDR") {
		cidr = anotherCIDR
		defer func() {
			s.setPodCIDR(usualCIDR)
			s.RemovePod(t, s.RunPod(t, harness.Pod("back"))) // the next pod restores the bridge
		}()
	}
	if s.setPodCIDR(cidr); s.of("attach network by CNI", "detach network by CNI") {
		handler, cidr = "wired", "10.99.0.0/24"
	}
	config := harness.Pod("story")
	config.LogDirectory = t.TempDir()
	config.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 20080}}
	var pod string
	s.again("run the pod", func() error {
		resp, err := s.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
		pod = resp.GetPodSandboxId()
		return err
	})
	s.again("ask for the pod", func() error {
		resp, err := s.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
		if err == nil && (resp.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY ||
			!netip.MustParsePrefix(cidr).Contains(netip.MustParseAddr(resp.Status.Network.GetIp()))) {
			t.Errorf("the pod is %s with address %q, want one of %s", resp.Status.State, resp.Status.Network.GetIp(), cidr)
		}
		return err
	})
	var all []string
	for name, script := range map[string]string{"asked": "trap 'exit 3' TERM; echo up; sleep 1000 & wait",
		"killed": "sleep 1000"} {
		c := harness.Container(name, image, "sh", "-c", script)
		var id string
		s.again("create "+name, func() error {
			resp, err := s.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c,
				SandboxConfig: config})
			id = resp.GetContainerId()
			return err
		})
		s.again("start "+name, func() error {
			_, err := s.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		})
		if all = append(all, id); name == "killed" {
			continue
		}
		if s.of("update container", "update pod") {
			s.resize(pod, id)
		}
		becomes(t, "it is up", func() bool {
			log, _ := os.ReadFile(filepath.Join(config.LogDirectory, name+".log"))
			return strings.Contains(string(log), " up\n")
		})
		s.again("stop "+name, func() error {
			_, err := s.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30})
			return err
		})
		s.again("ask for "+name, func() error {
			resp, err := s.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
			if err == nil && (resp.Status.State != runtimeapi.ContainerState_CONTAINER_EXITED || resp.Status.ExitCode != 3) {
				t.Errorf("it is %s with exit code %d, want 3", resp.Status.State, resp.Status.ExitCode)
			}
			return err
		})
	}
	s.again("list", func() error {
		resp, err := s.Runtime.ListContainers(ctx,
			&runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: pod}})
		for _, c := range resp.GetContainers() {
			if !slices.Contains(all, c.Id) {
				t.Errorf("a second copy of %s: %s", c.Metadata.Name, c.Id)
			}
		}
		return err
	})
	s.again("remove a container", func() error {
		_, err := s.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: all[0]})
		return err
	})
	s.again("stop the pod", func() error {
		_, err := s.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
		return err
	})
	s.again("remove the pod", func() error {
		_, err := s.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
		return err
	})
	s.again("list", func() error {
		_, err := s.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		return err
	})
}

// kurid is killed at each step of each of its workflows. A client that repeats its calls notices
// nothing, running containers continue, nothing exists twice, and nothing is left behind.
func TestKuridKilledAtEachStep(t *testing.T) {
	conf, bin, wires := t.TempDir(), t.TempDir(), t.TempDir()
	d := harness.Start(t, harness.Options{Bin: killable(t), Config: wiredHandler(t, conf, bin, wires, "")})
	own := d.Registry.Push(t, "story:1", withFile(t, "a layer of its own", types.OCILayer, compression.GZip))
	d.Pull(t, own)
	for _, like := range []string{"pull: ", "attach network by CNI: ", ""} { // creates what is created once and kept
		(&stepper{Daemon: d, t: t, step: like}).story(own)
	}
	d.Settle(t)
	image := d.PullBusybox(t)
	beside := harness.HostNetwork(harness.Pod("beside")) // no network namespace, whose links would change by themselves
	count := d.Run(t, d.RunPod(t, beside), harness.Container("count", image, "sh", "-c",
		"i=0; while :; do echo $i; i=$((i+1)); [ $((i % 50)) = 0 ] && sleep 0.05; done"), beside)
	pid, log := firstPid(t, d, count), filepath.Join(beside.LogDirectory, "count.log")
	leaky := append(d.Leaky(), filepath.Join(d.Root, "images"), filepath.Join(d.Root, "layers"),
		filepath.Join(d.Root, "cni"), wires)
	idle, err := harness.Observe(leaky...)
	if err != nil {
		t.Fatal(err)
	}
	delete(idle, "processes") // kurid's pid changes; Start checks for processes of containers at the end
	keeper := descriptors(t, d.KeeperPid())
	for _, step := range workflowSteps(t) {
		t.Run(step, func(t *testing.T) {
			s := &stepper{Daemon: d, t: t, step: step, point: filepath.Join(d.State, "failpoint")}
			if err := os.WriteFile(s.point, []byte(step), 0o600); err != nil {
				t.Fatal(err)
			}
			s.story(own)
			if s.kills == 0 { // some steps come after the response
				becomes(t, "kurid is killed", s.revive)
			}
			pods, err := d.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
			if err != nil || len(pods.Items) != 1 {
				t.Errorf("the pods are %v, %v; want the one beside", pods.GetItems(), err)
			}
			if now := firstPid(t, d, count); now != pid {
				t.Errorf("the container beside has pid %d, had %d", now, pid)
			}
			reached := counted(t, log)
			becomes(t, "its log goes on", func() bool { return counted(t, log) > reached })
			// an idle bridge goes, with this address, after ten seconds: see the next step
			if step != "set pod CIDR: bridge told" {
				harness.CheckLeaks(t, "after the story", idle, leaky...)
			}
			becomes(t, "the keeper has as many descriptors as before",
				func() bool { return descriptors(t, d.KeeperPid()) <= keeper })
		})
	}
}

// wiredHandler returns the configuration of a handler whose pods are attached by a CNI plugin.
// While a pod is attached it has a file in wires. The plugin runs the script onADD first.
func wiredHandler(t *testing.T, conf, bin, wires, onADD string) (config string) {
	t.Helper()
	plugin := harness.Write(t, bin, "wire", `#!/bin/sh
case $CNI_COMMAND in
ADD) `+onADD+`
	echo >`+wires+`/$CNI_CONTAINERID
	echo '{"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "'$CNI_NETNS'"}], "ips": [{"address": "10.99.0.7/24", "interface": 0}]}' ;;
DEL) rm -f `+wires+`/$CNI_CONTAINERID ;;
esac
`)
	if err := os.Chmod(plugin, 0o755); err != nil {
		t.Fatal(err)
	}
	harness.Write(t, conf, "10-wire.conflist",
		`{"cniVersion":"1.0.0","name":"wire","plugins":[{"type":"wire","capabilities":{"portMappings":true}}]}`)
	return fmt.Sprintf("[network]\ncni_conf_dir = %q\ncni_bin_dirs = [%q]\n[handler.wired]\ncni_conf_dir = %q\n",
		t.TempDir(), bin, conf)
}

// A CNI plugin continues when kurid is killed. Its results are removed with the pod.
func TestKuridKilledWhileAPluginRuns(t *testing.T) {
	conf, bin, wires := t.TempDir(), t.TempDir(), t.TempDir()
	first := filepath.Join(bin, "pid")
	d := harness.Start(t, harness.Options{Config: wiredHandler(t, conf, bin, wires, "[ -e "+first+" ] || { echo $$ >"+
		first+"; kill -9 $PPID; sleep 3; }")})
	run := func() (string, error) {
		resp, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: harness.Pod("wired"),
			RuntimeHandler: "wired"})
		return resp.GetPodSandboxId(), err
	}
	if _, err := run(); err == nil {
		t.Fatal("kurid was not killed")
	}
	d.Revive(t)
	pod, err := run()
	if err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	becomes(t, "the plugin of the killed kurid ends", func() bool {
		_, err := os.Stat("/proc/" + strings.TrimSpace(string(body)))
		return err != nil
	})
	has := func(want ...string) func() bool {
		return func() bool {
			files, err := filepath.Glob(filepath.Join(wires, "*"))
			for i, f := range files {
				files[i] = filepath.Base(f)
			}
			return err == nil && slices.Equal(files, want)
		}
	}
	becomes(t, "there is the wire of the new pod alone", has(pod))
	d.RemovePod(t, pod)
	becomes(t, "there is no wire", has())
}

// descriptors returns the number of descriptors of a process.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
