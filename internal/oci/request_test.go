package oci

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// decoder compiles the C code that reads requests, with the sanitizers.
func decoder(t testing.TB) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "decode")
	cc := exec.Command("cc", "-g", "-Wall", "-Wextra", "-Wno-unused-function", "-fsanitize=address,undefined",
		"-fno-sanitize-recover",
		"-o", program, "testdata/decode.c")
	if out, err := cc.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// decode passes a request to program and returns its output. A refused request is an error with the
// exit code.
func decode(t testing.TB, program string, flags byte, body []byte) (string, error) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	var out, complaint bytes.Buffer
	cmd := exec.Command(program, fmt.Sprint(flags))
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{theirs}, &out, &complaint
	cmd.Env = []string{"ASAN_OPTIONS=detect_leaks=0"} // a process that calls exec frees nothing
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	ours.Write(binary.NativeEndian.AppendUint32(nil, uint32(len(body))))
	for len(body) > 0 {
		n := min(len(body), 64<<10)
		if _, err := ours.Write(body[:n]); err != nil {
			break
		}
		body = body[n:]
	}
	unix.Shutdown(pair[0], unix.SHUT_WR)
	err = cmd.Wait()
	if complaint.Len() > 0 {
		t.Fatalf("%s", complaint.String())
	}
	return out.String(), err
}

// testRequest returns the request for a container with a value in every field.
func testRequest(t testing.TB) []byte {
	t.Helper()
	umask, oom := uint32(0o027), 321
	caps := &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_KILL"}, Effective: []string{"CAP_CHOWN"},
		Permitted: []string{"CAP_CHOWN"}}
	spec := &specs.Spec{
		Process: &specs.Process{
			Args: []string{"/bin/sh", "-c", "true"}, Env: []string{"PATH=/bin", "A=1", "A=2"}, Cwd: "/work", Capabilities: caps,
			User:            specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8}, Umask: &umask},
			Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_MEMLOCK", Soft: 300, Hard: 400}},
			NoNewPrivileges: true,
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
			{Type: specs.UserNamespace, Path: "/proc/self/ns/user"}}},
	}
	config := &configs.Config{
		UIDMappings: []configs.IDMap{{HostID: 1 << 20, Size: 5000}},
		GIDMappings: []configs.IDMap{{HostID: 1 << 20, Size: 5000}},
		Rootfs:      "/state/mounts/x/rootfs", Readonlyfs: true, OomScoreAdj: &oom, Hostname: "web",
		Namespaces: configs.Namespaces{{Type: configs.NEWPID}, {Type: configs.NEWNS}, {Type: configs.NEWUTS,
			Path: "/proc/self/ns/uts"}, {Type: configs.NEWIPC}, {Type: configs.NEWUSER, Path: "/proc/self/ns/user"}},
		MaskPaths: []string{"/proc/kcore", "/proc//kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		Mounts: []*configs.Mount{
			{Source: "proc", Destination: "/proc", Device: "proc"},
			{Source: "tmpfs", Destination: "/dev", Device: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_RDONLY,
				Data: "mode=755,size=65536k"},
			{Source: "/src", Destination: "/a", Device: "bind", Flags: unix.MS_BIND | unix.MS_REC | unix.MS_RDONLY,
				PropagationFlags: []int{unix.MS_PRIVATE | unix.MS_REC},
				IDMapping:        &configs.MountIDMapping{Recursive: true}},
			{Source: "/src", Destination: "/b", Device: "bind", Flags: unix.MS_BIND, ClearedFlags: unix.MS_RDONLY,
				RecAttr: &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}},
		},
		Devices: []*devices.Device{{Path: "/dev/null", FileMode: 0o666,
			Rule: devices.Rule{Type: devices.CharDevice, Major: 1, Minor: 3}}},
	}
	n := &native{id: "x", dir: "/state/x", paths: map[string]string{"cpu": "/cg/cpu/x", "pids": "/cg/pids/x"}}
	body, joined, err := n.request(spec, config)
	if err != nil {
		t.Fatal(err)
	}
	closeAll(joined)
	if len(joined) != 2 {
		t.Errorf("%d namespaces are joined", len(joined))
	}
	return body
}

// TestRequestRoundTrip writes a request in Go and reads it in C.
func TestRequestRoundTrip(t *testing.T) {
	got, err := decode(t, decoder(t), isContainer, testRequest(t))
	if err != nil {
		t.Fatal(err)
	}
	want := `user 1000 1001 umask 27 oom 321 namespaces 30020000 switches 7f
capabilities 21 1 1 0 0
group 7
group 8
limit 7 100 200
limit 8 300 400
cwd [/work] keyring [_ses.x] labels [] [] cgroup [] filter 0
env: [PATH=/bin] [A=2]
args: [/bin/sh] [-c] [true]
cgroups: [/cg/pids/x/tasks]
root [/state/mounts/x/rootfs] read-only 1 devices 1 propagation 84000 40000 unshared 8000000 new pids 1 joined 2 names [web] [] last [/cg/cpu/x/tasks] stage [/state/x]
masked: [/proc/kcore]
readonly: [/proc/sys]
mount 1 2 [proc] [/proc] [proc] 0 0 0 0 0 0 options:
mount 1 20 [tmpfs] [/dev] [tmpfs] 2 0 0 0 0 0 options: [mode=755] [size=65536k]
mount 2 481 [/src] [/a] [bind] 1 20000e 0 0 0 0 44000 options:
mount 2 96 [/src] [/b] [bind] 0 20000f 1 1 0 0 options:
device [/dev/null] 20666 1:3 0 0
`
	if got != want {
		t.Errorf("written:\n%s\nread:\n%s", want, got)
	}
}

// The C code refuses invalid requests, and accesses no memory out of bounds.
func FuzzRequest(f *testing.F) {
	program, body := decoder(f), testRequest(f)
	f.Add(body, byte(isContainer))
	f.Add(body, byte(0))
	f.Add(body[:len(body)-1], byte(isContainer))
	f.Add(bytes.Repeat([]byte{0xff}, 100), byte(isContainer))
	f.Add([]byte{}, byte(0))
	f.Fuzz(func(t *testing.T, body []byte, flags byte) {
		if len(body) > 1<<20 {
			return
		}
		_, err := decode(t, program, flags&isContainer, body)
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 255) {
			t.Errorf("%v", err)
		}
	})
}

// The steps have the same numbers in the C code.
func TestStepsAgree(t *testing.T) {
	source, err := os.ReadFile("forkserver.c")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(source), "\tREAD = 1, ")
	list, _, _ = strings.Cut("READ, "+list, "};")
	var names []string
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	if len(names) != len(steps)-1 {
		t.Fatalf("%d steps there, %d here: %v", len(names), len(steps)-1, names)
	}
	for name, number := range map[string]int{
		"JOIN": stepJoin, "FORK": stepFork, "DIRECTORY": stepCwd, "SEARCH": stepSearch, "EXEC": stepExec,
		"CONSOLE": stepConsole, "MOUNT": stepMount, "IDMAP": stepIDMap,
	} {
		if names[number-1] != name {
			t.Errorf("step %d is %s there, %s here", number, names[number-1], name)
		}
	}
}
