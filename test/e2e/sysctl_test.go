package e2e

import (
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// kernelParameters reads parameters in a container by their paths below /proc/sys.
func kernelParameters(t *testing.T, d *harness.Daemon, id string, names ...string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, name := range names {
		out[name] = strings.Join(strings.Fields(d.Output(t, id, "cat", "/proc/sys/"+name)), " ")
	}
	return out
}

// kernelParametersOfNode reads parameters in the test's own namespaces, which are the node's.
func kernelParametersOfNode(t *testing.T, names ...string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, name := range names {
		body, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = strings.Join(strings.Fields(string(body)), " ")
	}
	return out
}

// Each parameter of a pod is set once its namespace or interface exists and with the credentials
// that the kernel requires, even if a user namespace of the pod owns its namespaces.
func TestSysctlsOfAPod(t *testing.T) {
	asked := map[string]string{
		"kernel.domainname":                   "lab.test",
		"kernel.shm_rmid_forced":              "1",
		"kernel/msgmax":                       "4096",
		"fs.mqueue.msg_max":                   "7",
		"net.core.somaxconn":                  "77",
		"net/ipv4/tcp_syncookies":             "0",
		"net.ipv4.conf.all.forwarding":        "1",
		"net.ipv4.conf.default.rp_filter":     "2",
		"net.ipv4.conf.eth0.forwarding":       "0",
		"net/ipv4/conf/eth0/arp_ignore":       "1",
		"net.ipv4.neigh.eth0.gc_stale_time":   "61",
		"net.ipv4.ip_unprivileged_port_start": "81",
	}
	want := map[string]string{
		"kernel/domainname": "lab.test", "kernel/shm_rmid_forced": "1", "kernel/msgmax": "4096", "fs/mqueue/msg_max": "7",
		"net/core/somaxconn": "77", "net/ipv4/tcp_syncookies": "0",
		"net/ipv4/conf/all/forwarding": "1", "net/ipv4/conf/lo/forwarding": "1", "net/ipv4/conf/eth0/forwarding": "0",
		"net/ipv4/conf/eth0/rp_filter": "2", "net/ipv4/conf/eth0/arp_ignore": "1", "net/ipv4/neigh/eth0/gc_stale_time": "61",
		"net/ipv4/ip_unprivileged_port_start": "81",
	}
	look := func(t *testing.T, s *shell, change func(*container, *security)) {
		id := s.run(t, change, "sleep", "1000")
		if got := kernelParameters(t, s.Daemon, id, slices.Collect(maps.Keys(want))...); !maps.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	set := func(p *runtimeapi.PodSandboxConfig) { p.Linux.Sysctls = asked }
	t.Run("the node's users", func(t *testing.T) {
		s := &shell{Daemon: harness.Start(t, harness.Options{}), podConfig: harness.Pod("sysctls")}
		s.image = s.PullBusybox(t)
		set(s.podConfig)
		s.pod = s.RunPod(t, s.podConfig)
		look(t, s, nil)

		for name, value := range map[string]string{
			"net.ipv4.conf.eth7.forwarding": "1", "net.ipv4.no_such_thing": "1", "net.ipv4.ip_local_port_range": "many",
			"fs.mqueue.no_such_thing": "1", "kernel.hostname": "x", "kernel.domainname": strings.Repeat("a", 65),
		} {
			p := harness.Pod("refused")
			p.Linux.Sysctls = map[string]string{name: value}
			_, err := s.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p})
			harness.WantError(t, err, codes.InvalidArgument, name)
		}
	})
	if exec.Command("unshare", "--user", "--net", "test", "-e", "/proc/sys/net/core/somaxconn").Run() != nil {
		// Older kernels, such as 6.1, have no net.core in a user namespace.
		delete(asked, "net.core.somaxconn")
		delete(want, "net/core/somaxconn")
	}
	t.Run("a user namespace", func(t *testing.T) { look(t, usernsShell(t, set), inPod(nil)) })
}

// In a pod with its own network every user may listen on low ports and send pings, unless the pod
// or the configuration disables that. The node's network does not change.
func TestUnprivilegedPortsAndPing(t *testing.T) {
	const ports, ping = "net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range"
	wants := func(t *testing.T, s *shell, change func(*container, *security), port, group string) string {
		t.Helper()
		id := s.run(t, func(c *container, sc *security) {
			sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 1000}
			sc.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
			if change != nil {
				change(c, sc)
			}
		}, "sleep", "1000")
		if got := kernelParameters(t, s.Daemon, id, ports, ping); got[ports] != port || got[ping] != group {
			t.Errorf("%q, want ports from %s and groups %s", got, port, group)
		}
		return id
	}
	works := func(t *testing.T, s *shell, id string, group int) {
		t.Helper()
		if out, errs, _ := s.Exec(t, id, "sh", "-c",
			"timeout 1 nc -l -p 80 127.0.0.1 </dev/null; [ $? = 143 ] && echo listened"); out != "listened\n" {
			t.Errorf("%q %q", out, errs)
		}
		if err := pingSocket("/run/netns/kuri-"+s.pod, group); err != nil {
			t.Errorf("a ping of group %d: %v", group, err)
		}
	}
	t.Run("by default", func(t *testing.T) {
		s := newShell(t)
		works(t, s, wants(t, s, nil, "0", "0 2147483647"), 1000)

		own := harness.Pod("own")
		own.Linux.Sysctls = map[string]string{"net/ipv4/ip_unprivileged_port_start": "1000",
			"net.ipv4.ping_group_range": "1 0"}
		x := &shell{Daemon: s.Daemon, podConfig: own, image: s.image, pod: s.RunPod(t, own)}
		wants(t, x, nil, "1000", "1 0")

		host := harness.Pod("host")
		host.Hostname = ""
		host.Linux.SecurityContext.NamespaceOptions.Network = nsNode
		before := kernelParametersOfNode(t, ports, ping)
		x = &shell{Daemon: s.Daemon, podConfig: host, image: s.image, pod: s.RunPod(t, host)}
		wants(t, x, func(_ *container, sc *security) { sc.NamespaceOptions.Network = nsNode }, before[ports], before[ping])
	})
	t.Run("a user namespace", func(t *testing.T) {
		s := usernsShell(t, nil)
		works(t, s, wants(t, s, inPod(nil), "0", "0 65535"), firstID+1000)
	})
	t.Run("turned off", func(t *testing.T) {
		s := newShell(t, harness.Options{Config: "[pod]\nunprivileged_ports = false\nunprivileged_ping = false"})
		wants(t, s, nil, "1024", "1 0")
		if err := pingSocket("/run/netns/kuri-"+s.pod, 1000); err == nil {
			t.Error("a user who is not root can ping, which the test takes for impossible")
		}
	})
}

// pingSocket opens a ping socket (icmp(7)) without capabilities in a network namespace, as a group
// of the node.
func pingSocket(netns string, group int) error {
	ns, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread exits with the goroutine
		done <- func() error {
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			id := uintptr(group)
			if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
				return errno
			}
			for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} { // only of this thread
				if _, _, errno := unix.RawSyscall(call, id, id, id); errno != 0 {
					return errno
				}
			}
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}()
	}()
	return <-done
}
