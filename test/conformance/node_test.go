package conformance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// nodeAddress is the node's, which must not be a loopback address.
const nodeAddress = "192.0.2.10"

// configuration is the kubelet's; what the suite itself needs it adds.
const configuration = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
resolvConf: %s
cgroupDriver: cgroupfs
cgroupRoot: /
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
makeIPTablesUtilChains: false
podCIDR: 10.100.0.0/24
volumeStatsAggPeriod: 10s
fileCheckFrequency: 10s
evictionHard: {nodefs.available: 1%%, nodefs.inodesFree: 1%%, imagefs.available: 1%%, imagefs.inodesFree: 1%%, memory.available: 50Mi}
imageGCHighThresholdPercent: 100
containerLogMaxSize: 40Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 10s
serializeImagePulls: false
`

// addAddress gives the cell its address and a default route, by which API server and kubelet find
// it. Nothing can be reached over it.
func addAddress(t *testing.T) {
	t.Helper()
	for _, args := range []string{
		"link add node0 type bridge", "link set node0 addrgenmode none", "address add " + nodeAddress +
			"/24 dev node0", "link set node0 up",
		"route add default via 192.0.2.1",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", args, err, out)
		}
	}
}

// hasDummyLinks reports whether the kernel has links of the kind dummy.
func hasDummyLinks() bool {
	if exec.Command("ip", "link", "add", "dummy-probe", "type", "dummy").Run() != nil {
		return false
	}
	return exec.Command("ip", "link", "delete", "dummy-probe").Run() == nil
}

// kubeletDirectory makes /var/lib/kubelet a directory on the disk, and of the cell's.
func kubeletDirectory(t *testing.T) {
	t.Helper()
	dir := filepath.Join(os.Getenv("CELL_DIR"), "kubelet")
	for _, d := range []string{dir, "/var/lib/kubelet"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mount(dir, "/var/lib/kubelet", "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("", "/var/lib/kubelet", "", syscall.MS_SHARED|syscall.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
}

// machine are sysctls without namespaces that the kubelet sets as it starts, and one of which it needs more than some
// machines give.
var machine = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
	"kernel/keys/root_maxbytes",
	"fs/inotify/max_user_instances",
}

// keepSysctls puts the machine's sysctls back when the test ends.
func keepSysctls(t *testing.T) {
	t.Helper()
	for _, name := range machine {
		path := "/proc/sys/" + name
		was, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.WriteFile(path, was, 0); err != nil {
				t.Errorf("put %s back: %v", name, err)
			}
		})
	}
	if err := os.WriteFile("/proc/sys/fs/inotify/max_user_instances", []byte("8192"), 0); err != nil {
		t.Fatal(err)
	}
}
