package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// originalMode is the first argument of a test binary that compiles a filter as [Filter] does, and
// does not simplify it.
const originalMode = "original-filter"

func originalFilter() {
	f, err := compile(os.Stdin)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(f.program)
	os.Exit(0)
}

// originalOf returns the program that libcontainer loads for a profile.
func originalOf(t *testing.T, p *configs.Seccomp) []byte {
	t.Helper()
	encoded, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", originalMode)
	cmd.Stdin, cmd.Stderr, cmd.Env = bytes.NewReader(encoded), os.Stderr, []string{"GOGC=off", "GOMAXPROCS=2",
		"GODEBUG=asyncpreemptoff=1"}
	program, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// comparison compares the results of two programs, with values next to those with which either
// compares.
type comparison struct {
	one, other       []byte
	arches, numbers  []uint32
	halves           []uint32 // of arguments
	most             int      // calls of one system call whose result depends on arguments
	random           *rand.Rand
	different, tried int // system calls whose result depends on arguments; all
}

func newComparison(one, other []byte, seed uint64) *comparison {
	c := &comparison{one: one, other: other, most: 1 << 14, random: rand.New(rand.NewPCG(seed, 2))}
	c.arches, c.numbers, c.halves = []uint32{0, unix.AUDIT_ARCH_AARCH64}, []uint32{math.MaxUint32}, []uint32{0, 1,
		math.MaxUint32}
	loaded := uint32(archOffset)
	for _, in := range append(instructions(one), instructions(other)...) {
		near := []uint32{in.K - 1, in.K, in.K + 1}
		switch {
		case in.Code == loadWord:
			loaded = in.K
		case in.Code == returnK || in.Code == jump:
		case loaded == archOffset:
			c.arches = append(c.arches, near...)
		case loaded == numberOffset:
			c.numbers = append(c.numbers, near...)
		default:
			c.halves = append(c.halves, near...)
		}
	}
	for _, all := range []*[]uint32{&c.numbers, &c.arches, &c.halves} {
		slices.Sort(*all)
		*all = slices.Compact(*all)
	}
	return c
}

// data returns the data of the nth call: first with each half as all arguments, then with random
// ones.
func (c *comparison) data(arch, number uint32, n int) []byte {
	if n < len(c.halves) {
		h := uint64(c.halves[n])
		return callData(arch, number, h, h, h, h, h, h)
	}
	half := func() uint64 {
		if c.random.IntN(8) == 0 {
			return uint64(c.random.Uint32())
		}
		return uint64(c.halves[c.random.IntN(len(c.halves))])
	}
	var args [6]uint64
	for i := range args {
		args[i] = half()
		if c.random.IntN(2) == 0 {
			args[i] |= half() << 32
		}
	}
	return callData(arch, number, args[:]...)
}

// call compares one system call, with more arguments if its result depends on them.
func (c *comparison) call(arch, number uint32) error {
	results := make(map[uint32]bool)
	limit := len(c.halves) + 16
	for n := 0; n < limit; n++ {
		data := c.data(arch, number, n)
		want, wok := run(c.one, data)
		if got, ok := run(c.other, data); got != want || ok != wok {
			return fmt.Errorf("architecture %#x, system call %d, arguments %x: %#x %t, not %#x %t", arch, number, data[16:], got,
				ok, want, wok)
		}
		results[want] = true
		if len(results) > 1 {
			limit = c.most
		}
	}
	c.tried++
	if len(results) > 1 {
		c.different++
	}
	return nil
}

// all compares all system calls that either program may distinguish.
func (c *comparison) all() error {
	for _, arch := range c.arches {
		for _, number := range c.numbers {
			if err := c.call(arch, number); err != nil {
				return err
			}
		}
	}
	return nil
}

// wantAccepted loads a program that allows what this needs, in another process.
func wantAccepted(t *testing.T, name string, program []byte) {
	t.Helper()
	code := instructions(program)
	fprog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // permanently: the thread ends with the goroutine
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			done <- err
			return
		}
		_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog)))
		runtime.KeepAlive(code)
		if errno != 0 {
			done <- errno
		}
		close(done)
	}()
	if err := <-done; err != nil {
		t.Errorf("%s: the kernel does not accept it: %v", name, err)
	}
}

// A simplified program has the result of the original for every system call, is shorter, and is
// accepted by the kernel.
func TestSimplifiedFiltersAgree(t *testing.T) {
	arguments := &configs.Seccomp{DefaultAction: configs.Allow, Syscalls: []*configs.Syscall{
		{Name: "getpriority", Action: configs.Errno,
			Args: []*configs.Arg{{Index: 0, Value: 1 << 40, Op: configs.GreaterThanOrEqualTo}}},
		{Name: "personality", Action: configs.Errno,
			Args: []*configs.Arg{{Index: 0, Value: 0xf0, ValueTwo: 0x30, Op: configs.MaskEqualTo}}},
		{Name: "socket", Action: configs.Errno, Args: []*configs.Arg{
			{Index: 0, Value: 40, Op: configs.EqualTo}, {Index: 1, Value: 3, Op: configs.LessThan}, {Index: 2, Value: 7,
				Op: configs.NotEqualTo},
		}},
		{Name: "getppid", Action: configs.Log},
		{Name: "getuid", Action: configs.Kill},
	}}
	some := profile(configs.Allow, "read", "write", "exit_group", "futex")
	some.DefaultAction = configs.Errno
	for name, c := range map[string]struct {
		profile  *configs.Seccomp
		limit    float64 // of the new length, by the old one
		harmless bool    // a thread of Go can live with it
		depend   int     // how many of the compared calls depend on arguments, at least
	}{
		"default":                    {defaultProfile(t), 0.4, true, 5},
		"default with CAP_SYS_ADMIN": {defaultProfile(t, "CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE"), 0.4, true, 5},
		"arguments":                  {arguments, 1, true, 1},
		"a list of four":             {some, 1, false, 0},
		"one forbidden":              {profile(configs.Errno, "getpid"), 1, false, 0},
		"one that kills":             {profile(configs.KillProcess, "getpid"), 1, false, 0},
	} {
		original := originalOf(t, c.profile)
		shorter := simplify(original)
		t.Logf("%s: %d instructions instead of %d", name, len(shorter)/instructionSize, len(original)/instructionSize)
		if float64(len(shorter)) > c.limit*float64(len(original)) {
			t.Errorf("%s: %d of %d instructions are left", name, len(shorter)/instructionSize, len(original)/instructionSize)
		}
		both := newComparison(original, shorter, 1)
		if err := both.all(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if both.different < c.depend {
			t.Errorf("%s: only %d of %d compared calls depend on their arguments", name, both.different, both.tried)
		}
		if c.harmless {
			wantAccepted(t, name, shorter)
		}
		var all filters
		f, err := all.of(c.profile)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(f.program, shorter) {
			t.Errorf("%s: containers have another program", name)
		}
	}
}

// A program of any form is simplified to one with the same results, or not at all.
func FuzzSimplify(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(seed, uint16(8+seed*7))
	}
	f.Fuzz(func(t *testing.T, seed uint64, length uint16) {
		program := programOf(randomProgram(rand.New(rand.NewPCG(seed, 1)), int(length%1024)))
		shorter := simplify(program)
		if len(shorter) > len(program) {
			t.Fatalf("%d bytes longer", len(shorter)-len(program))
		}
		c := newComparison(program, shorter, seed)
		c.most = 256 // the fuzzer takes an input of ten seconds for one that hangs
		for range 300 {
			arch, number := c.arches[c.random.IntN(len(c.arches))], c.numbers[c.random.IntN(len(c.numbers))]
			if err := c.call(arch, number); err != nil {
				t.Fatalf("%v\n%v\n%v", err, instructions(program), instructions(shorter))
			}
		}
	})
}

// randomProgram returns a program of the instructions that libseccomp generates. Most of them
// compare the architecture or the number with small values.
func randomProgram(random *rand.Rand, length int) []unix.SockFilter {
	length = max(length, 4)
	results := []uint32{unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_KILL_PROCESS, unix.SECCOMP_RET_ERRNO | 1,
		unix.SECCOMP_RET_ERRNO | 38}
	compares := []uint16{jumpEqual, jumpEqual, jumpEqual, jumpAbove, jumpFrom, jumpIfBits}
	values := []uint32{0, 1, 1 << 30, 2 << 30, 3 << 30, math.MaxUint32, 100, 101, 102, 107}
	program := make([]unix.SockFilter, length)
	for i := range program {
		left := length - 1 - i
		in := &program[i]
		far := func() uint32 { return uint32(random.IntN(min(left, 1+random.IntN(256)))) }
		switch kind := random.IntN(64); {
		case left == 0 || kind < 4:
			*in = unix.SockFilter{Code: returnK, K: results[random.IntN(len(results))]}
		case i == 0 || kind < 6:
			*in = unix.SockFilter{Code: loadWord, K: 4 * uint32(random.IntN(2))}
		case kind == 6:
			*in = unix.SockFilter{Code: loadWord, K: 4 * uint32(random.IntN(16))}
		case kind == 7:
			*in = unix.SockFilter{Code: jump, K: uint32(random.IntN(left))}
		case kind == 8 && random.IntN(8) == 0:
			*in = unix.SockFilter{Code: andK, K: random.Uint32()}
		default:
			in.Code, in.Jt, in.Jf, in.K = compares[random.IntN(len(compares))], uint8(far()), uint8(far()),
				values[random.IntN(len(values))]
			if in.Code == jumpIfBits {
				in.K = 1 << 30
			} else if random.IntN(2) == 0 {
				in.K = uint32(random.IntN(500))
			}
		}
	}
	return program
}
