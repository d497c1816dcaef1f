package vm

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// rows are lines of kuri check on such a machine: a state, and its finding.
var rows = map[string]string{
	"cgroups, version":             "ok: v2",
	"cgroups, controllers":         "ok: ",
	"cgroups, delegation":          "ok: ",
	"cgroups, pressure":            "ok: ",
	"kernel, version":              "ok: 6.",
	"kernel, exit status by pidfd": "limited: ",
	"storage, overlayfs":           "ok: ",
	"network, nftables":            "ok: ",
	"runtime, RuntimeReady":        "ok: ",
	"runtime, NetworkReady":        "ok: ",
}

// kuri check, top and doctor report the true state of a node with systemd, every controller of
// cgroup v2 and a Debian kernel.
func TestToolsForPeople(t *testing.T) {
	more(t)
	d := start(t)
	image := d.PullBusybox(t)
	config := harness.Pod("looked-at")
	pod := d.RunPod(t, config)
	main := harness.Container("main", image, "sh", "-c", "while :; do :; done")
	main.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000,
		MemoryLimitInBytes: 64 << 20}
	c := d.Run(t, pod, main, config)
	d.Socket, d.ImageSocket = strings.TrimPrefix(socket, "unix://"), strings.TrimPrefix(socket, "unix://")

	t.Run("check", func(t *testing.T) {
		out, stderr, code := d.Kuri(t, "check", "-o", "json")
		var got struct {
			Checks  []struct{ Group, Name, State, Detail string }
			Summary map[string]int
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%v: %s%s", err, out, stderr)
		}
		if got.Summary["missing"] != 0 || code > 1 || (code == 1) != (got.Summary["limited"] > 0) {
			t.Errorf("exit code %d, %v:\n%s", code, got.Summary, out)
		}
		is := make(map[string]string)
		for _, r := range got.Checks {
			is[r.Group+", "+r.Name] = r.State + ": " + r.Detail
		}
		for name, want := range rows {
			if !strings.Contains(is[name], want) {
				t.Errorf("%s is %q, want %q", name, is[name], want)
			}
		}
		if t.Failed() {
			t.Logf("kuri check said:\n%s", out)
		}
	})
	t.Run("doctor", func(t *testing.T) {
		if out, stderr, code := d.Kuri(t, "doctor"); code != 0 || !strings.Contains(out, "nothing is wrong") {
			t.Errorf("of a healthy node: exit code %d: %s%s", code, out, stderr)
		}
		// A scope of an unknown container, with a process in it.
		lost := "kuri-" + strings.Repeat("e", 64) + ".scope"
		nobodys := exec.Command("systemd-run", "--scope", "--unit", lost, "sleep", "100021")
		if err := nobodys.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			exec.Command("systemctl", "kill", "--signal", "KILL", lost).Run()
			nobodys.Wait()
		}()
		harness.Eventually(t, time.Minute, "the scope is there", func() error {
			if len(units(t, lost)) == 0 {
				return fmt.Errorf("there is no %s", lost)
			}
			return nil
		})
		out, stderr, code := d.Kuri(t, "doctor")
		if code == 0 || !strings.Contains(out, "sleep 100021") && !strings.Contains(out, lost) ||
			!strings.Contains(out, "no pod has it") {
			t.Errorf("of a scope that nobody owns: exit code %d: %s%s", code, out, stderr)
		}
		if strings.Contains(out, c) {
			t.Errorf("the container that runs is called damaged:\n%s", out)
		}
	})
	t.Run("top", func(t *testing.T) {
		out, stderr, code := d.Kuri(t, "top", "-b", "-n", "1", "-c")
		if row := regexp.MustCompile(`(?m)^.*looked-at.* running .*$`).FindString(out); code != 0 ||
			!strings.Contains(row, "main") {
			t.Errorf("exit code %d: %s%s", code, out, stderr)
		}
		// The usage as in the cgroup: a part of a core, a part of 64 MiB, and the time throttled by
		// the quota.
		out, stderr, code = d.Kuri(t, "top", "-o", "json", "-d", "2s")
		var got struct {
			Pods, Containers []struct {
				ID, State                                          string
				CPU, Memory, MemoryLimit, Processes, WaitCPU, Disk float64
			}
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || len(got.Pods) != 1 ||
			len(got.Containers) != 1 {
			t.Fatalf("exit code %d, %v: %s%s", code, err, out, stderr)
		}
		if r := got.Containers[0]; r.ID != c || r.State != "running" || r.CPU < 1 || r.Memory <= 0 ||
			r.MemoryLimit != 64<<20 || r.WaitCPU < 0 {
			t.Errorf("of the container: %+v", r)
		}
		if r := got.Pods[0]; r.ID != pod || r.State != "1/1" || r.CPU < 1 || r.Memory <= 0 {
			t.Errorf("of the pod: %+v", r)
		}
	})
	d.RemovePod(t, pod)
}
