package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// Hanging probes occupy all slots: one more fails within its own timeout with an error that is not
// a failed probe, and the slots are free again after the hanging ones are killed.
func TestExecSyncsAreBounded(t *testing.T) {
	s := newShell(t, harness.Options{Config: "[pod]\nmax_execs = 2"})
	id := s.run(t, nil, "sleep", "1000")
	exec := func(timeout int64, command ...string) error {
		_, err := s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command,
			Timeout: timeout})
		return err
	}
	var hanging sync.WaitGroup
	for range 2 {
		hanging.Go(func() {
			if err := exec(9, "sleep", "600"); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("one that hangs: %v", err)
			}
		})
	}
	time.Sleep(time.Second)
	begin := time.Now()
	err := exec(1, "true")
	if took := time.Since(begin); status.Code(err) != codes.ResourceExhausted ||
		!strings.Contains(err.Error(), "pod.max_execs") || took > 6*time.Second {
		t.Errorf("one too many: %v after %s", err, took)
	}
	if err := exec(30, "true"); err != nil {
		t.Errorf("one that waits for its turn: %v", err)
	}
	hanging.Wait()
}

// wantForkServer asserts that no exec used libcontainer.
func wantForkServer(t *testing.T, d *harness.Daemon) {
	t.Helper()
	log, err := os.ReadFile(filepath.Join(d.State, "keeper.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "libcontainer") {
			t.Error(line)
		}
	}
}
