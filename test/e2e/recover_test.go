package e2e

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// multiply copies the records of a pod named "many", as kurid has written them, with new ids and
// names and the changes of change. It returns the ids of the copies.
func multiply(t *testing.T, d *harness.Daemon, pod string, count int, change func(string) string) []string {
	t.Helper()
	files := map[string]string{} // contents by path below the directory of pods
	dirs := []string{filepath.Join(d.Root, "pods"), filepath.Join(d.State, "pods")}
	var containers []string
	for n, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(dir, pod, "containers", "*"))
		if err != nil {
			t.Fatal(err)
		}
		paths := []string{filepath.Join(dir, pod, "pod.json")}
		for _, c := range found {
			paths = append(paths, filepath.Join(c, "container.json"), filepath.Join(c, "config.json"))
			if n == 0 {
				containers = append(containers, filepath.Base(c))
			}
		}
		for _, path := range paths {
			if body, err := os.ReadFile(path); err == nil {
				files[path] = change(string(body))
			}
		}
	}
	id := func() string {
		var b [32]byte
		rand.Read(b[:])
		return hex.EncodeToString(b[:])
	}
	ids := make([]string, count)
	for i := range ids {
		ids[i] = id()
		replace := []string{pod, ids[i], `"name":"many"`, fmt.Sprintf(`"name":"many-%d"`, i)}
		for _, c := range containers {
			replace = append(replace, c, id())
		}
		rename := strings.NewReplacer(replace...)
		for path, body := range files {
			to := rename.Replace(path)
			if err := os.MkdirAll(filepath.Dir(to), 0o711); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, []byte(rename.Replace(body)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return ids
}

// A rebooted node has the records of many pods whose containers were running. The daemon answers before it
// has released their resources: nothing is reported as running, and a process that now has a recorded pid is
// left alone. KURI_TEST_RECORDS is the number of pods. The test prints the time until the first response.
func TestManyPodsAfterAReboot(t *testing.T) {
	count := 100
	if n, err := strconv.Atoi(os.Getenv("KURI_TEST_RECORDS")); err == nil {
		count = n
	}
	d := harness.Start(t, harness.Options{NoPods: true})
	image := d.PullBusybox(t)
	config := harness.Pod("many")
	config.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}
	pod := d.RunPod(t, config)
	for n := range 3 {
		d.Run(t, pod, harness.Container(fmt.Sprint("c", n), image, "sleep", "100000"), config)
	}
	d.Stop(t)
	innocent := exec.Command("sleep", "100000")
	if err := innocent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		innocent.Process.Kill()
		innocent.Wait()
	}()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	ids := multiply(t, d, pod, count, func(body string) string {
		body = strings.ReplaceAll(body, strings.TrimSpace(string(boot)), "00000000-0000-0000-0000-000000000000")
		return regexp.MustCompile(`"pid":\d+`).ReplaceAllString(body, fmt.Sprintf(`"pid":%d`, innocent.Process.Pid))
	})

	begun := time.Now()
	d.Continue(t)
	if _, err := d.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pods with three containers each: an answer after %s", count, time.Since(begun).Round(time.Millisecond))
	list, err := d.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	containers, err := d.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != count+1 || len(containers.Containers) != 3*(count+1) {
		t.Errorf("%d pods and %d containers", len(list.Items), len(containers.Containers))
	}
	for _, item := range list.Items {
		if want := item.Id == pod; want != (item.State == runtimeapi.PodSandboxState_SANDBOX_READY) {
			t.Errorf("%s is %v", item.Metadata.Name, item.State)
		}
	}
	for _, item := range containers.Containers {
		if want := item.PodSandboxId == pod; want != (item.State == runtimeapi.ContainerState_CONTAINER_RUNNING) {
			t.Fatalf("container %s of pod %s is %v", item.Id, item.PodSandboxId, item.State)
		}
	}

	// A kubelet removes the old pods and creates the same pod again at once.
	again := harness.Pod("many-0")
	again.Linux.SecurityContext = config.Linux.SecurityContext
	if made := d.RunPod(t, again); made == ids[0] {
		t.Error("the pod of the last boot is the answer")
	} else {
		d.RemovePod(t, made)
	}
	c := containersOf(containers.Containers, ids[0])[0]
	if st := d.ContainerStatus(t, c); st.ExitCode != 255 || st.Reason != "ContainerStatusUnknown" || st.Message == "" {
		t.Errorf("a container of the last boot: %v", st)
	}
	d.RemovePod(t, ids[0])
	d.RemovePod(t, pod)
	if err := innocent.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the process that has the number of a container's was killed: %v", err)
	}
	var status syscall.WaitStatus
	if ended, _ := syscall.Wait4(innocent.Process.Pid, &status, syscall.WNOHANG, nil); ended != 0 {
		t.Errorf("the process that has the number of a container's has ended: %v", status)
	}
}

// containersOf returns the ids of a pod's containers.
func containersOf(all []*runtimeapi.Container, pod string) (ids []string) {
	for _, c := range all {
		if c.PodSandboxId == pod {
			ids = append(ids, c.Id)
		}
	}
	return ids
}
