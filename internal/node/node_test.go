package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestReadThisMachine(t *testing.T) {
	n, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	if n.KernelVersion == "" || n.Hostname == "" {
		t.Errorf("no kernel version or host name: %+v", n)
	}
	if os.Geteuid() == 0 && !slices.Contains(n.Capabilities, "CAP_CHOWN") {
		t.Errorf("root without CAP_CHOWN: %v", n.Capabilities)
	}
	if n.MinOOMScoreAdj > 1000 || n.MinOOMScoreAdj < -1000 {
		t.Errorf("oom_score_adj %d", n.MinOOMScoreAdj)
	}
	// A kernel that has AppArmor is of no use where the list of its profiles cannot be read.
	if _, err := os.Stat("/sys/kernel/security/apparmor/profiles"); n.AppArmor && err != nil {
		t.Errorf("AppArmor is told of, but %v", err)
	}
}

func TestGrantable(t *testing.T) {
	for _, c := range []struct {
		status string
		want   []string
		bad    bool
	}{
		{status: "CapPrm:\t0000000000000003\nCapBnd:\t0000000000000005\n", want: []string{"CAP_CHOWN"}},
		{status: "CapPrm:\t000001ffffffffff\nCapBnd:\t0000000001000000\n", want: []string{"CAP_SYS_RESOURCE"}},
		{status: "CapPrm:\t0\nCapBnd:\t0\n"},
		{status: "CapPrm:\t1\n", bad: true},
		{status: "CapBnd:\tzz\nCapPrm:\t1\n", bad: true},
	} {
		got, err := grantable(c.status)
		if (err != nil) != c.bad || !slices.Equal(got, c.want) {
			t.Errorf("%q: %v, %v", c.status, got, err)
		}
	}
}

func TestMinOOMScoreAdj(t *testing.T) {
	if n, err := minOOMScoreAdj([]string{"CAP_SYS_RESOURCE"}); n != -1000 || err != nil {
		t.Errorf("with CAP_SYS_RESOURCE: %d, %v", n, err)
	}
	own, err := minOOMScoreAdj(nil)
	if err != nil {
		t.Fatal(err)
	}
	if own < -1000 || own > 1000 {
		t.Errorf("without: %d", own)
	}
}

func TestCgroupOptions(t *testing.T) {
	const v1 = "30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
	const v2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,seclabel,nsdelegate,memory_recursiveprot\n"
	for body, want := range map[string]string{"": "", v1: "", v2: "nsdelegate memory_recursiveprot", "junk\n - \n" + v2: "nsdelegate memory_recursiveprot"} {
		file := filepath.Join(t.TempDir(), "mountinfo")
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(cgroupOptions(file), " "); got != want {
			t.Errorf("%q: %q, want %q", body, got, want)
		}
	}
	if got := cgroupOptions("/no/such/file"); got != nil {
		t.Errorf("%q", got)
	}
}
