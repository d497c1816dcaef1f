package holder

import (
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzHolder sends packets of any kind with descriptors of any number. The holder, built with the
// sanitizers, must go on and answer the next client.
func FuzzHolder(f *testing.F) {
	c, _, state := start(f, idle)
	keeperOf(f, c, 0)
	packet := func(version, op, pid uint32, name string) []byte {
		b := binary.NativeEndian.AppendUint32(nil, version)
		b = binary.NativeEndian.AppendUint32(b, op)
		return append(binary.NativeEndian.AppendUint32(b, pid), name...)
	}
	for op := range uint32(opProgram + 2) {
		if op != opReexec && op != opRestart { // a program of any name would be started as the keeper
			f.Add(packet(version, op, 1, "container/a/stdout"), byte(1))
			f.Add(packet(version, op, 0xffffffff, ""), byte(0))
		}
	}
	f.Add(packet(2, opPut, 0, strings.Repeat("n", 5000)), byte(9))
	f.Add([]byte("short"), byte(3))
	null, err := os.Open("/dev/null")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte, files byte) {
		if len(body) >= 8 {
			if op := binary.NativeEndian.Uint32(body[4:]); op == opReexec || op == opRestart {
				return
			}
		}
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Connect(fd, &unix.SockaddrUnix{Name: state + "/holder.sock"}); err != nil {
			t.Fatal(err)
		}
		var rights []byte
		if n := int(files % 12); n > 0 {
			rights = unix.UnixRights(slices.Repeat([]int{int(null.Fd())}, n)...)
		}
		if err := unix.Sendmsg(fd, body, rights, nil, unix.MSG_NOSIGNAL); err != nil && err != unix.EMSGSIZE {
			t.Fatal(err)
		}
		if info, err := c.Info(); err != nil || info.Keeper == 0 {
			t.Fatalf("after %q: %+v %v", body, info, err)
		}
	})
}

// FuzzAnswer reads answers of any kind.
func FuzzAnswer(f *testing.F) {
	f.Add(make([]byte, 12))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, packet []byte) {
		if a, err := parse(packet, nil, nil); err == nil && a.fd != -1 {
			t.Error("a descriptor of nowhere")
		}
	})
}
