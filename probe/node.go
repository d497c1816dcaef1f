package probe

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

var nodeRows = []row{
	{"node", "swap", (*machine).swap, "a kubelet does not start, unless failSwapOn is false",
		"swapoff -a and /etc/fstab, or failSwapOn: false in the kubelet's configuration"},
	{"node", "clock", (*machine).clock, "certificates and tokens are refused, and logs have wrong times",
		"run chrony or systemd-timesyncd"},
	{"node", "kubelet", (*machine).kubelet, "the kubelet does not use this runtime correctly",
		"fix /var/lib/kubelet/config.yaml and restart the kubelet"},
	{"node", "port 10250", (*machine).kubeletPort, "a kubelet does not start",
		"end what listens there: ss -ltnp sport = :10250"},
	{"node", "other runtimes", (*machine).otherRuntimes,
		"kubeadm refuses to guess which runtime is meant, and kubelet and tools may use the other one",
		"name the socket: criSocket for kubeadm, containerRuntimeEndpoint for the kubelet; or stop the other runtime"},
}

func (m *machine) swap() Result {
	n := max(0, strings.Count(m.read("/proc/swaps"), "\n")) // without the header line
	switch failOn := m.kubeletConfig()["failSwapOn"]; {
	case n == 0:
		return ok("none")
	case failOn == false:
		return ok("on, and the kubelet takes it (failSwapOn: false)")
	}
	return limited("%d swap areas are in use", n)
}

// A clock before the beginning of 2026 is wrong.
var built = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func (m *machine) clock() Result {
	var tx unix.Timex
	state, err := unix.Adjtimex(&tx)
	if err != nil {
		return unknown("adjtimex: %v", err)
	}
	return judgeClock(time.Now(), state != 5 && tx.Status&unix.STA_UNSYNC == 0) // 5: TIME_ERROR
}

func judgeClock(now time.Time, synchronized bool) Result {
	switch {
	case now.Before(built):
		return missing("it is %s here", now.Format(time.DateTime))
	case !synchronized:
		return limited("nothing synchronizes it")
	}
	return ok("synchronized")
}

// kubeletConfig returns the kubelet's configuration, or an empty map if it cannot be read.
func (m *machine) kubeletConfig() map[string]any {
	out := map[string]any{}
	_ = yaml.Unmarshal([]byte(m.read("/var/lib/kubelet/config.yaml")), &out)
	return out
}

func (m *machine) kubelet() Result {
	if _, err := os.Stat(m.path("/var/lib/kubelet/config.yaml")); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return onlyRoot()
		}
		return ok("not configured on this node")
	}
	config := m.kubeletConfig()
	flags := m.read("/var/lib/kubelet/kubeadm-flags.env")
	endpoint, _ := config["containerRuntimeEndpoint"].(string)
	if _, rest, found := strings.Cut(flags, "--container-runtime-endpoint="); found {
		endpoint, _, _ = strings.Cut(strings.NewReplacer(`"`, " ", "'", " ").Replace(rest), " ")
	}
	if socket := strings.TrimPrefix(endpoint, "unix://"); socket != "" && socket != m.RuntimeSocket {
		r := limited("it uses %s", endpoint)
		r.Mend = "containerRuntimeEndpoint: unix://" + m.RuntimeSocket +
			" in /var/lib/kubelet/config.yaml, if it is to use Kuri"
		return r
	}
	// Since 1.34 a kubelet gets the driver from the runtime; an older one uses its own setting.
	if driver, _ := config["cgroupDriver"].(string); driver != "" && m.CgroupDriver != "" && driver != m.CgroupDriver {
		return limited("its cgroupDriver is %s, the runtime's is %s", driver, m.CgroupDriver)
	}
	if endpoint == "" {
		return ok("configured, without an endpoint of a runtime")
	}
	return ok("configured for %s", endpoint)
}

func (m *machine) kubeletPort() Result {
	l, err := net.Listen("tcp", ":10250")
	switch {
	case err == nil:
		l.Close()
		return ok("free")
	case !errors.Is(err, unix.EADDRINUSE):
		return unknown("%v", err)
	case m.kubeletRuns():
		return ok("in use, and a kubelet runs")
	}
	return limited("in use, and no kubelet runs")
}

func (m *machine) kubeletRuns() bool {
	names, _ := filepath.Glob(m.path("/proc/[0-9]*/comm"))
	for _, name := range names {
		if body, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(body)) == "kubelet" {
			return true
		}
	}
	return false
}

// runtimes are the sockets at which kubeadm looks for runtimes, including cri-dockerd.
var runtimes = map[string]string{
	"/run/containerd/containerd.sock": "containerd", "/run/crio/crio.sock": "CRI-O",
	"/run/cri-dockerd.sock": "cri-dockerd",
}

func (m *machine) otherRuntimes() Result {
	var found []string
	for socket, name := range runtimes {
		if socket == m.RuntimeSocket {
			continue
		}
		conn, err := net.DialTimeout("unix", m.path(socket), time.Second)
		if err == nil {
			conn.Close()
		}
		if err == nil || errors.Is(err, os.ErrPermission) {
			found = append(found, name+" at "+socket)
		}
	}
	slices.Sort(found)
	if len(found) > 0 {
		return limited("%s", strings.Join(found, ", "))
	}
	return ok("none")
}
