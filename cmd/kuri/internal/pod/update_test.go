package pod

import "testing"

func TestLimitsOf(t *testing.T) {
	l, err := limitsOf("64m", "1.5", 512)
	if err != nil || l.MemoryLimitInBytes != 64<<20 || l.CpuQuota != 150_000 || l.CpuPeriod != 100_000 ||
		l.CpuShares != 512 {
		t.Errorf("%v %v", l, err)
	}
	if l, err = limitsOf("", "0.001", 0); err != nil || l.CpuQuota != 1000 || l.MemoryLimitInBytes != 0 ||
		l.CpuShares != 0 {
		t.Errorf("%v %v", l, err)
	}
	for _, bad := range []struct {
		memory, cpus string
		shares       int64
	}{{}, {memory: "1"}, {cpus: "-1"}, {cpus: "x"}, {cpus: "1e30"}, {shares: 1}, {shares: 1 << 20}, {shares: -5}} {
		if l, err := limitsOf(bad.memory, bad.cpus, bad.shares); err == nil {
			t.Errorf("%+v: %v", bad, l)
		}
	}
}
