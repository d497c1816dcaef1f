package node

import (
	"os"
	"slices"
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
