package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// Without a configuration kurid serves at its default address and runs a pod.
func TestNoConfiguration(t *testing.T) {
	d := harness.Start(t, harness.Options{Bare: true})
	info, err := os.Stat("/run/kuri/kuri.sock")
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the socket has mode %v and owner %d, want 0600 and root", info.Mode().Perm(),
			info.Sys().(*syscall.Stat_t).Uid)
	}
	image := d.PullBusybox(t)
	p := harness.Pod("bare")
	pod := d.RunPod(t, p)
	c := d.Run(t, pod, harness.Container("main", image, "sh", "-c", "exit 3"), p)
	if got := d.WaitExit(t, c).ExitCode; got != 3 {
		t.Errorf("exit code %d, want 3", got)
	}
}

func TestBadConfiguration(t *testing.T) {
	dir := t.TempDir()
	base := fmt.Sprintf("root = %q\nstate = %q\nlisten = %q\n", dir+"/root", dir+"/state", dir+"/state/kuri.sock")
	for _, test := range []struct {
		name, config string
		flags        []string
		says         []string
	}{
		{"unknown key", "lisen = \"/x\"", nil, []string{"lisen", "unknown key"}},
		{"unknown key in a table", "[image]\nmirrors = 3", nil, []string{"image.mirrors", "unknown key"}},
		{"bad level", "log_level = \"loud\"", nil, []string{"log_level", "loud"}},
		{"bad format", "log_format = \"xml\"", nil, []string{"log_format", "xml"}},
		{"bad driver", "cgroup_driver = \"none\"", nil, []string{"cgroup_driver", "none"}},
		{"bad subnet", "[network]\nsubnets = [\"10.0.0.0/99\"]", nil, []string{"network.subnets"}},
		{"two IPv4 subnets", "[network]\nsubnets = [\"10.9.0.0/16\", \"10.8.0.0/16\"]", nil,
			[]string{"network.subnets", "10.8.0.0/16"}},
		{"wrong type", "[pod]\nshm_size = \"big\"", nil, []string{"shm_size"}},
		{"not TOML", "root = = 3", nil, []string{"config.toml"}},
		{"relative socket", "", []string{"--listen", "kuri.sock"}, []string{"listen", "absolute"}},
		{"state is root", "", []string{"--state", dir + "/root"}, []string{"state"}},
		{"long socket", "", []string{"--listen", "/" + strings.Repeat("x", 120)}, []string{"listen", "107"}},
		{"unknown flag", "", []string{"--nope"}, []string{"nope"}},
		{"an argument", "", []string{"serve"}, []string{"serve"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := harness.Write(t, dir, "config.toml", base+test.config+"\n")
			said, code := harness.RunKurid(t, append([]string{"--config", file}, test.flags...)...)
			if code == 0 {
				t.Error("kurid exits 0")
			}
			for _, w := range test.says {
				if !strings.Contains(said, w) {
					t.Errorf("kurid does not say %q but:\n%s", w, said)
				}
			}
		})
	}
	t.Run("absent file", func(t *testing.T) {
		said, code := harness.RunKurid(t, "--config", dir+"/absent.toml")
		if code == 0 || !strings.Contains(said, "absent.toml") {
			t.Errorf("kurid exits %d and says:\n%s", code, said)
		}
	})
}

// kurid knows every key in the configuration file that `make install` installs.
func TestPackagedConfiguration(t *testing.T) {
	packaged, err := os.ReadFile(filepath.Join(harness.Repository(), "packaging", "config.toml"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	keys := 0
	for line := range strings.Lines(string(packaged)) {
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " ") {
			line = rest
			keys++
		}
		all.WriteString(line)
	}
	// With one invalid flag value kurid reads the file first and then exits.
	said, code := harness.RunKurid(t, "--config", harness.Write(t, t.TempDir(), "all.toml", all.String()), "--log-level",
		"loud")
	if code == 0 || strings.Contains(said, "all.toml") || !strings.Contains(said, "log_level") || keys < 15 {
		t.Errorf("with %d keys set, kurid exits %d and says:\n%s", keys, code, said)
	}
}

// A second daemon on the directories of a first is refused with the pid of the first, which keeps running.
func TestSecondDaemon(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	other := t.TempDir()
	for name, flags := range map[string][]string{
		"same root":  {"--root", d.Root, "--state", other + "/state", "--listen", other + "/kuri.sock"},
		"same state": {"--root", other + "/root", "--state", d.State, "--listen", other + "/kuri.sock"},
	} {
		t.Run(name, func(t *testing.T) {
			said, code := harness.RunKurid(t, flags...)
			if code == 0 || !strings.Contains(said, strconv.Itoa(d.Pid())) || !strings.Contains(said, "--replace") {
				t.Errorf("kurid exits %d and does not name process %d and the flag that replaces it:\n%s", code, d.Pid(), said)
			}
		})
	}
	if _, err := d.Runtime.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("the first daemon does not answer any more: %v", err)
	}
}

// Two daemons with separate directories do not see or disturb each other.
func TestTwoDaemonsSideBySide(t *testing.T) {
	web := func(d *harness.Daemon) (pod, ip string) {
		d.Pull(t, d.Registry.Push(t, "web:1", harness.Web(t)))
		p := harness.Pod("same-name")
		pod = d.RunPod(t, p)
		d.Run(t, pod, harness.Container("web", d.Registry.Host+"/web:1"), p)
		return pod, d.PodStatus(t, pod).Network.Ip
	}
	first := harness.Start(t, harness.Options{})
	pod, _ := web(first) // its keeper starts the fork server before the second daemon examines the node
	first.RemovePod(t, pod)
	second := harness.Start(t, harness.Options{})
	var ips []string
	for _, d := range []*harness.Daemon{first, second} {
		_, ip := web(d)
		ips = append(ips, ip)
	}
	if ips[0] == ips[1] {
		t.Errorf("both pods have the address %s", ips[0])
	}
	for _, ip := range ips {
		get(t, "http://"+net.JoinHostPort(ip, "8080")+"/healthz")
	}
	for _, d := range []*harness.Daemon{second, first} {
		list, err := d.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil || len(list.Items) != 1 {
			t.Fatalf("a daemon lists %d pods (%v), want its own", len(list.GetItems()), err)
		}
		d.RemovePod(t, list.Items[0].Id)
	}
}

// With a separate image socket, that socket serves only the image service, and the other only the
// runtime service.
func TestSeparateImageEndpoint(t *testing.T) {
	d := harness.Start(t, harness.Options{Images: true})
	if d.Socket == d.ImageSocket {
		t.Fatal("one socket")
	}
	d.PullBusybox(t)
	conn := dial(t, d.ImageSocket)
	if err := call(t, conn, "/runtime.v1.RuntimeService/Version"); err == nil {
		t.Error("the image socket serves the RuntimeService")
	}
}

// A daemon that is stopped leaves its pods running, and after the restart finds them and its keeper again.
func TestRestartLeavesPods(t *testing.T) {
	for name, end := range map[string]func(*harness.Daemon, testing.TB){
		"TERM": (*harness.Daemon).Stop,
		"KILL": (*harness.Daemon).Kill9,
	} {
		t.Run(name, func(t *testing.T) {
			d := harness.Start(t, harness.Options{})
			image := d.PullBusybox(t)
			p := harness.Pod("stays")
			pod := d.RunPod(t, p)
			loop := d.Run(t, pod, harness.Container("loop", image, "sh", "-c", "while :; do echo line; sleep 0.1; done"), p)
			ends := d.Run(t, pod, harness.Container("ends", image, "sh", "-c", "sleep 1741; exit 7"), p)
			sleep := harness.FindProcess(t, "sleep 1741")
			keeper := d.KeeperPid()
			status := d.PodStatus(t, pod)
			before := len(d.LogLines(t, loop))
			log := d.ContainerStatus(t, loop).LogPath

			end(d, t)
			asOf := time.Now()
			if err := syscall.Kill(sleep, syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			harness.Eventually(t, 10*time.Second, "a log that grows and an exit while kurid is away", func() error {
				b, err := os.ReadFile(log)
				if now := strings.Count(string(b), "\n"); err == nil && now < before+5 {
					err = fmt.Errorf("the log had %d lines and has %d", before, now)
				}
				if left := harness.Processes(t, "sh -c sleep 1741"); len(left) > 0 {
					err = errors.Join(err, fmt.Errorf("there is %v", left))
				}
				return err
			})
			d.Continue(t)

			if got := d.KeeperPid(); got != keeper {
				t.Errorf("the keeper was process %d and is now %d", keeper, got)
			}
			if got := d.PodStatus(t, pod); got.State != runtimeapi.PodSandboxState_SANDBOX_READY ||
				got.Network.Ip != status.Network.Ip || got.CreatedAt != status.CreatedAt {
				t.Errorf("the pod was %v and is now %v", status, got)
			}
			if s := d.ContainerStatus(t, loop); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the container that runs is %v", s.State)
			}
			if out := d.Output(t, loop, "echo", "still here"); out != "still here\n" {
				t.Errorf("exec says %q", out)
			}
			s := d.WaitExit(t, ends)
			finished := time.Unix(0, s.FinishedAt)
			if s.ExitCode != 7 || finished.Before(asOf) || finished.After(asOf.Add(1400*time.Millisecond)) {
				t.Errorf("the container that ended meanwhile has exit code %d, time %v; it ended with 7 within a second of %v",
					s.ExitCode, finished, asOf)
			}
			if fresh := d.Run(t, pod, harness.Container("fresh", image, "true"), p); d.WaitExit(t, fresh).ExitCode != 0 {
				t.Error("a new container in the old pod does not run")
			}
			d.RemovePod(t, pod)
		})
	}
}

// An unreadable record affects only its own pod.
func TestDamagedRecord(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	good, _ := d.RunAlone(t, "good", image, "sleep", "1000")
	bad, _ := d.RunAlone(t, "bad", image, "true")
	d.Stop(t)
	record := filepath.Join(d.Root, "pods", bad, "pod.json")
	text, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	harness.Write(t, filepath.Dir(record), "pod.json", "{ not json")
	d.Continue(t)
	if s := d.PodStatus(t, good); s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("the pod with a good record is %v", s.State)
	}
	if !strings.Contains(d.Log(t), bad) {
		t.Error("the log does not name the pod whose record is damaged")
	}
	// Restore the records that were set aside, for the cleanup of the test.
	d.Stop(t)
	harness.Write(t, filepath.Dir(record), "pod.json", string(text))
	d.Continue(t)
}

// The keeper of an empty node exits on SIGTERM without an error. So does its holder, which removes
// their cgroups.
func TestKeeperEnds(t *testing.T) {
	d := harness.Start(t, harness.Options{NoPods: true})
	keeper, holder := d.KeeperPid(), d.HolderPid()
	d.Stop(t)
	if err := syscall.Kill(keeper, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "the end of the keeper and its holder", func() error {
		for _, pid := range []int{keeper, holder} {
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("process %d is there: %v", pid, err)
			}
		}
		return nil
	})
	log, err := os.ReadFile(filepath.Join(d.State, "keeper.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if !strings.Contains(line, " level=INFO ") {
			t.Errorf("the keeper said: %s", line)
		}
	}
	d.Continue(t)
}
