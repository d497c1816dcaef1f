package oci

import (
	"math/rand/v2"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultProfile returns the RuntimeDefault profile of a container with the given capabilities.
func defaultProfile(t *testing.T, capabilities ...string) *configs.Seccomp {
	t.Helper()
	all := &specs.LinuxCapabilities{Bounding: capabilities}
	profile, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: all}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := specconv.SetupSeccomp(profile)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// filter.allows agrees with the kernel: for the calls that tests of internal/keeper/server make
// under these filters, and for calls whose result the profile specifies.
func TestWhatAFilterAllows(t *testing.T) {
	var all filters
	filterOf := func(p *configs.Seccomp) *filter {
		f, err := all.of(p)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	plain, admin := filterOf(defaultProfile(t)), filterOf(defaultProfile(t, "CAP_SYS_ADMIN"))
	arguments := filterOf(&configs.Seccomp{DefaultAction: configs.Allow, Syscalls: []*configs.Syscall{
		{Name: "getpriority", Action: configs.Errno,
			Args: []*configs.Arg{{Index: 0, Value: 1 << 40, Op: configs.GreaterThanOrEqualTo}}},
		{Name: "personality", Action: configs.Errno,
			Args: []*configs.Arg{{Index: 0, Value: 0xf0, ValueTwo: 0x30, Op: configs.MaskEqualTo}}},
		{Name: "getppid", Action: configs.Log},
		{Name: "getuid", Action: configs.Kill},
	}})
	for _, c := range []struct {
		name   string
		filter *filter
		nr     uint32
		args   []uint64
		want   bool
	}{
		{"clone", plain, unix.SYS_CLONE, []uint64{unix.CLONE_PARENT}, true},
		{"clone into a user namespace", plain, unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER}, false},
		{"clone into a user namespace, with CAP_SYS_ADMIN", admin, unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER}, true},
		{"clone3", plain, unix.SYS_CLONE3, nil, false},
		{"unshare", plain, unix.SYS_UNSHARE, nil, false},
		{"unshare, with CAP_SYS_ADMIN", admin, unix.SYS_UNSHARE, nil, true},
		{"newer than the profile", plain, 1000, nil, false},
		{"just below", arguments, unix.SYS_GETPRIORITY, []uint64{1<<40 - 1}, true},
		{"equal", arguments, unix.SYS_GETPRIORITY, []uint64{1 << 40}, false},
		{"above", arguments, unix.SYS_GETPRIORITY, []uint64{1 << 63}, false},
		{"masked", arguments, unix.SYS_PERSONALITY, []uint64{0xf3f}, false},
		{"masked, another", arguments, unix.SYS_PERSONALITY, []uint64{0xf4f}, true},
		{"logged", arguments, unix.SYS_GETPPID, nil, true},
		{"kills", arguments, unix.SYS_GETUID, nil, false},
	} {
		if got := c.filter.allows(c.nr, c.args...); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
	for name, f := range map[string]*filter{"default": plain, "default with CAP_SYS_ADMIN": admin,
		"of one's own": arguments} {
		if f.loadEarly != 1 {
			t.Errorf("%s: it is loaded late", name)
		}
	}
	for _, call := range []string{"clone", "read", "write", "capset", "setsid", "prlimit64", "ioctl", "exit_group"} {
		if f := filterOf(profile(configs.Errno, call)); f.loadEarly != 0 {
			t.Errorf("a filter that forbids %s is loaded early", call)
		}
	}
}

// An invalid program ends, without a result.
func TestRunOfRubbish(t *testing.T) {
	random := rand.NewChaCha8([32]byte{})
	codes := []uint16{unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_ALU | unix.BPF_AND | unix.BPF_K,
		unix.BPF_JMP | unix.BPF_JA, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K,
		0xffff}
	for range 10000 {
		program := make([]byte, random.Uint64()%100)
		random.Read(program)
		for at := 0; at+instructionSize <= len(program); at += instructionSize {
			code := codes[random.Uint64()%uint64(len(codes))]
			program[at], program[at+1] = byte(code), byte(code>>8)
		}
		if answer, ok := run(program, make([]byte, 64)); ok {
			t.Fatalf("%x returns %#x", program, answer)
		}
	}
	if (&filter{}).allows(unix.SYS_WRITE) {
		t.Error("no program allows")
	}
}
