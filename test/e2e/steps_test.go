package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// killable builds the programs with a kurid that can be killed at its steps, and returns their directory.
func killable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-tags", "seccomp failpoint", "-o", filepath.Join(dir, "kurid"), "github.com/kuri-cri/kuri/cmd/kurid")
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

// workflowSteps are the steps of kurid's workflows at which it can be killed, from the source.
func workflowSteps(t *testing.T) (all []string) {
	t.Helper()
	for _, room := range []string{"pod", "network", "image"} {
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
	if len(all) < 30 {
		t.Fatalf("there are %d steps", len(all))
	}
	return all
}

// stepper drives a daemon that is killed at a step, as a kubelet does: a call that was cut off is made again.
type stepper struct {
	*harness.Daemon
	t     *testing.T
	point string // the file that names the step; gone when kurid has been killed there
	kills int
}

// again makes a call, and once more when kurid was killed under it.
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

// story is the life of a pod, with an image of its own if that is asked for, and what must be true at its end.
func (s *stepper) story(image string, pulls bool) {
	t, ctx := s.t, s.t.Context()
	if pulls {
		s.again("remove the image", func() error {
			_, err := s.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
			return err
		})
		s.again("pull", func() error {
			_, err := s.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
			return err
		})
	}
	config := harness.Pod("story")
	config.LogDirectory = t.TempDir()
	config.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 20080}}
	var pod string
	s.again("run the pod", func() error {
		resp, err := s.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		pod = resp.GetPodSandboxId()
		return err
	})
	var all []string
	for name, script := range map[string]string{"asked": "trap 'exit 3' TERM; echo up; sleep 1000 & wait", "killed": "sleep 1000"} {
		c := harness.Container(name, image, "sh", "-c", script)
		var id string
		s.again("create "+name, func() error {
			resp, err := s.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
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
		resp, err := s.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: pod}})
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

// kurid is killed at each step of each of its workflows. Who calls it again sees nothing of it; what runs beside goes on;
// nothing is there twice, and nothing is left.
func TestKuridKilledAtEachStep(t *testing.T) {
	d := harness.Start(t, harness.Options{Bin: killable(t)})
	image := d.PullBusybox(t)
	beside := harness.HostNetwork(harness.Pod("beside")) // whose links would change by themselves
	count := d.Run(t, d.RunPod(t, beside), harness.Container("count", image, "sh", "-c",
		"i=0; while :; do echo $i; i=$((i+1)); [ $((i % 50)) = 0 ] && sleep 0.05; done"), beside)
	pid, log := firstPid(t, d, count), filepath.Join(beside.LogDirectory, "count.log")
	own := d.Registry.Push(t, "story:1", harness.Busybox(t))
	d.Pull(t, own)
	(&stepper{Daemon: d, t: t}).story(own, false) // what is made once and kept
	idle, err := harness.Observe(d.Leaky()...)
	if err != nil {
		t.Fatal(err)
	}
	delete(idle, "processes") // a kurid has another pid each time; Start looks for those of containers at the end
	keeper := descriptors(t, d.KeeperPid())
	for _, step := range workflowSteps(t) {
		t.Run(step, func(t *testing.T) {
			s := &stepper{Daemon: d, t: t, point: filepath.Join(d.State, "failpoint")}
			if err := os.WriteFile(s.point, []byte(step), 0o600); err != nil {
				t.Fatal(err)
			}
			s.story(own, strings.HasPrefix(step, "pull: "))
			if s.kills == 0 { // it does some things after its answer
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
			harness.CheckLeaks(t, "after the story", idle, d.Leaky()...)
			becomes(t, "the keeper has as many descriptors as before", func() bool { return descriptors(t, d.KeeperPid()) <= keeper })
		})
	}
}

// descriptors counts those of a process.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
