package oci

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// A process has the limit of locked memory that the keeper was started with, whatever the keeper's is
// by now, unless it has one of its own.
func TestLimitOfLockedMemory(t *testing.T) {
	was := memlock
	t.Cleanup(func() { memlock = was })
	memlock = unix.Rlimit{Cur: 1 << 16, Max: 1 << 17}
	for _, c := range []struct {
		given []specs.POSIXRlimit
		want  configs.Rlimit
	}{
		{nil, configs.Rlimit{Type: unix.RLIMIT_MEMLOCK, Soft: 1 << 16, Hard: 1 << 17}},
		{[]specs.POSIXRlimit{{Type: "RLIMIT_MEMLOCK", Soft: 1, Hard: 2}}, configs.Rlimit{Type: unix.RLIMIT_MEMLOCK, Soft: 1, Hard: 2}},
	} {
		p, err := processOf(&specs.Process{Args: []string{"true"}, Cwd: "/", Rlimits: c.given})
		if err != nil || len(p.Rlimits) != 1 || p.Rlimits[0] != c.want {
			t.Errorf("given %v: %v, %v; want %v", c.given, p, err, c.want)
		}
	}
}
