package e2e

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// memory returns a value of /proc/PID/status of the daemon in bytes: VmRSS, or VmHWM, the peak
// since resetPeak.
func memory(t *testing.T, d *harness.Daemon, name string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(name + `:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no %s in %s", name, status)
	}
	kib, _ := strconv.Atoi(string(m[1]))
	return kib << 10
}

func resetPeak(t *testing.T, d *harness.Daemon) {
	t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.Pid()), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// wantGivenBack asserts that within seconds the daemon uses no more than 24 MiB above before.
func wantGivenBack(t *testing.T, d *harness.Daemon, before int) {
	t.Helper()
	harness.Eventually(t, 8*time.Second, "the memory is given back", func() error {
		if now := memory(t, d, "VmRSS"); now > before+24<<20 {
			return fmt.Errorf("%d MiB are in use, %d before", now>>20, before>>20)
		}
		return nil
	})
}

// Thirty concurrent commands print more than is kept: each response has nearly 16 MiB, and the daemon
// never holds all of them at once.
func TestOutputsOfExecSyncsAreBoundedTogether(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sleep", "1000")
	s.Output(t, id, "true")
	before := memory(t, s.Daemon, "VmRSS")
	resetPeak(t, s.Daemon)
	var all sync.WaitGroup
	for i := range 30 {
		all.Go(func() {
			resp, err := s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c",
				fmt.Sprintf("echo %d; dd if=/dev/zero bs=1M count=20 2>/dev/null; echo end >&2; exit 3", i)}})
			if err != nil {
				t.Error(err)
				return
			}
			zeros, ok := bytes.CutPrefix(resp.Stdout, fmt.Appendf(nil, "%d\n", i))
			if n := len(resp.Stdout); n > 16<<20 || n < 16<<20-2<<10 || !ok || len(bytes.Trim(zeros, "\x00")) > 0 || string(resp.Stderr) != "end\n" || resp.ExitCode != 3 {
				t.Errorf("%d: %d bytes of stdout, stderr %q, code %d", i, len(resp.Stdout), resp.Stderr, resp.ExitCode)
			}
		})
	}
	all.Wait()
	if peak := memory(t, s.Daemon, "VmHWM"); peak > before+128<<20 {
		t.Errorf("kurid took %d MiB, %d before", peak>>20, before>>20)
	}
	wantGivenBack(t, s.Daemon, before)
}

// A request with more content than any pod needs costs the daemon no memory.
func TestALargeRequestCostsLittle(t *testing.T) {
	s := newShell(t)
	before := memory(t, s.Daemon, "VmRSS")
	resetPeak(t, s.Daemon)
	for name, change := range map[string]func(*container){
		"60 MiB of one label":  func(c *container) { c.Labels = map[string]string{"a": strings.Repeat("x", 60<<20)} },
		"60 MiB of arguments":  func(c *container) { c.Args = strings.Split(strings.Repeat("x,", 20<<20), ",") },
		"15 MiB of empty envs": func(c *container) { c.Envs = make([]*runtimeapi.KeyValue, 7<<20) },
	} {
		config := s.config(func(c *container, _ *security) { change(c) }, "true")
		for i := range config.Envs {
			if config.Envs[i] == nil {
				config.Envs[i] = &runtimeapi.KeyValue{}
			}
		}
		_, err := s.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: s.pod, Config: config, SandboxConfig: s.podConfig})
		t.Log(name)
		harness.WantError(t, err, codes.ResourceExhausted)
	}
	if peak := memory(t, s.Daemon, "VmHWM"); peak > before+128<<20 {
		t.Errorf("kurid took %d MiB, %d before", peak>>20, before>>20)
	}
	s.run(t, nil, "true")
}

// While the files of one container are counted for the first time, the stats of the others are
// returned at once. Its own follow.
func TestManyFilesDelayNoStats(t *testing.T) {
	s := newShell(t)
	large := s.run(t, nil, "sh", "-c", "mkdir /d; cd /d; for i in $(seq 60); do mkdir $i; (cd $i; touch $(seq 1000)); done; echo ready; sleep 1000")
	harness.Eventually(t, 60*time.Second, "the files are there", func() error {
		if s.LogText(t, large, "stdout") != "ready\n" {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	s.run(t, nil, "sleep", "1000")
	s.Restart(t) // so that nothing has been counted yet
	var used uint64
	harness.Eventually(t, 30*time.Second, "the files are counted", func() error {
		begin := time.Now()
		resp, err := s.Runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
		took := time.Since(begin)
		if err != nil {
			t.Fatal(err)
		}
		if took > harness.Patient(3*time.Second) {
			t.Errorf("the list took %s", took)
		}
		for _, one := range resp.Stats {
			if one.Attributes.Id != large && one.WritableLayer.GetUsedBytes().GetValue() == 0 {
				return fmt.Errorf("the other one is not counted: %v", one)
			}
			if one.Attributes.Id == large {
				used = one.WritableLayer.GetInodesUsed().GetValue()
			}
		}
		if used < 60_000 {
			return fmt.Errorf("%d inodes", used)
		}
		return nil
	})
	if used > 60_100 {
		t.Errorf("%d inodes", used)
	}
}
