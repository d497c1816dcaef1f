package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

func TestLog(t *testing.T) {
	s := newShell(t)
	t.Run("both streams, line by line", func(t *testing.T) {
		id := s.run(t, nil, "sh", "-c", "echo one; sleep 0.1; echo two >&2; sleep 0.1; printf three; sleep 0.1; echo; printf 'no end'")
		st := s.WaitExit(t, id)
		var got []string
		last := time.Unix(0, st.StartedAt)
		for _, l := range s.LogLines(t, id) {
			got = append(got, l.Stream+" "+l.Text)
			if l.Time.Before(last) {
				t.Errorf("the times do not grow: %v after %v", l.Time, last)
			}
			last = l.Time
		}
		if want := "stdout one|stderr two|stdout three|stdout no end"; strings.Join(got, "|") != want {
			t.Errorf("the log is %q, want %q", got, want)
		}
	})
	t.Run("a line longer than a piece", func(t *testing.T) {
		const length = 100_000
		id := s.run(t, nil, "sh", "-c", fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x; echo; echo end", length))
		s.WaitExit(t, id)
		lines := s.LogLines(t, id)
		if len(lines) < 3 || lines[0].Full || !lines[len(lines)-2].Full {
			t.Errorf("%d pieces, the first is the end of a line: %v", len(lines), lines[0].Full)
		}
		if text := s.LogText(t, id, "stdout"); text != strings.Repeat("x", length)+"\nend\n" {
			t.Errorf("the log holds %d bytes, want %d", len(text), length+5)
		}
	})
	t.Run("all of it is there when the exit is", func(t *testing.T) {
		id := s.run(t, nil, "sh", "-c", "seq 1 20000")
		s.WaitExit(t, id)
		if n := strings.Count(s.LogText(t, id, "stdout"), "\n"); n != 20000 {
			t.Errorf("%d lines, want 20000", n)
		}
	})
	t.Run("reopened", func(t *testing.T) {
		id := s.run(t, nil, "sh", "-c", "while :; do echo line; sleep 0.02; done")
		path := s.ContainerStatus(t, id).LogPath
		if err := os.Rename(path, path+".1"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		old, err := os.ReadFile(path + ".1")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
		if now, err := os.ReadFile(path + ".1"); err != nil || len(now) != len(old) {
			t.Errorf("the old file went from %d to %d bytes (%v)", len(old), len(now), err)
		}
		harness.Eventually(t, 10*time.Second, "the new file has lines", func() error {
			if len(s.LogLines(t, id)) == 0 {
				return errors.New("it is empty")
			}
			return nil
		})
		s.StopContainer(t, id, 0)
		_, err = s.Runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
		harness.WantError(t, err, codes.FailedPrecondition)
	})
	t.Run("without a log", func(t *testing.T) {
		id := s.run(t, func(c *container, _ *security) { c.LogPath = "" }, "echo", "nobody reads this")
		if st := s.WaitExit(t, id); st.ExitCode != 0 || st.LogPath != "" {
			t.Errorf("exit code %d, log path %q", st.ExitCode, st.LogPath)
		}
	})
}

func TestExec(t *testing.T) {
	s := newShell(t)
	id := s.run(t, func(c *container, sec *security) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "MINE", Value: []byte("yes")}}
		c.WorkingDir = "/tmp"
		sec.RunAsUser = &runtimeapi.Int64Value{Value: 33}
	}, "sleep", "1000")
	exec := func(timeout int64, command ...string) (*runtimeapi.ExecSyncResponse, error) {
		return s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: timeout})
	}

	stdout, stderr, code := s.Exec(t, id, "sh", "-c", "echo out; echo err >&2; exit 6")
	if stdout != "out\n" || stderr != "err\n" || code != 6 {
		t.Errorf("exec gives %q, %q, %d", stdout, stderr, code)
	}
	if got := s.Output(t, id, "sh", "-c", "echo $MINE $(pwd) $(id -u)"); got != "yes /tmp 33\n" {
		t.Errorf("exec runs with %q, want the container's environment, directory and user", got)
	}
	t.Run("no such program", func(t *testing.T) {
		resp, err := exec(5, "/bin/no-such")
		if err == nil && resp.ExitCode == 0 {
			t.Error("it succeeds")
		}
		if err != nil && !strings.Contains(err.Error(), "no-such") {
			t.Errorf("the error does not name the program: %v", err)
		}
	})
	t.Run("no command", func(t *testing.T) {
		_, err := exec(5)
		harness.WantError(t, err, codes.InvalidArgument, "cmd")
	})
	t.Run("time-out", func(t *testing.T) {
		begin := time.Now()
		_, err := exec(1, "sh", "-c", "sleep 100005 & sleep 100006")
		if took := time.Since(begin); took < 900*time.Millisecond || took > 20*time.Second {
			t.Errorf("a time-out of 1 s took %v", took)
		}
		harness.WantError(t, err, codes.DeadlineExceeded, "1s")
		harness.Eventually(t, 2*time.Second, "its processes are gone", func() error {
			if left := harness.Processes(t, "sleep 10000"); len(left) > 0 {
				return fmt.Errorf("left: %v", left)
			}
			return nil
		})
	})
	t.Run("a child that keeps the pipe open delays nothing", func(t *testing.T) {
		begin := time.Now()
		resp, err := exec(20, "sh", "-c", "echo said; sleep 100 & exit 0")
		if err != nil || string(resp.Stdout) != "said\n" {
			t.Errorf("exec gives %q, %v", resp.GetStdout(), err)
		}
		if took := time.Since(begin); took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
	})
	t.Run("more output than is answered with", func(t *testing.T) {
		// The client receives 16 MiB, as a kubelet does.
		resp, err := s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{
			ContainerId: id, Timeout: 60, Cmd: []string{"sh", "-c", "head -c 20000000 /dev/zero; echo done >&2"},
		})
		if err != nil || string(resp.Stderr) != "done\n" || resp.ExitCode != 0 {
			t.Fatalf("exec gives %d bytes, %q, %v", len(resp.GetStdout()), resp.GetStderr(), err)
		}
		if n := len(resp.Stdout); n > 16<<20 || n < 16<<20-2<<10 {
			t.Errorf("%d bytes come back, want nearly 16 MiB", n)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		errs := make(chan error, 20)
		for i := range cap(errs) {
			go func() {
				resp, err := exec(30, "sh", "-c", fmt.Sprintf("exit %d", i))
				if err == nil && resp.ExitCode != int32(i) {
					err = fmt.Errorf("exit code %d, want %d", resp.ExitCode, i)
				}
				errs <- err
			}()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("in a container that does not run", func(t *testing.T) {
		made := s.Create(t, s.pod, s.config(nil, "true"), s.podConfig)
		_, err := s.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: made, Cmd: []string{"true"}})
		harness.WantError(t, err, codes.FailedPrecondition)
	})
}
