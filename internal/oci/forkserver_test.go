package oci

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Messages that a process of the container sends, on the socket that it has until its exec, are not
// trusted: only the processes that the keeper waits for can report pids.
func TestWhoIsBelieved(t *testing.T) {
	own := os.Getpid()
	words := func(all ...int32) (b []byte) {
		for _, w := range all {
			b = binary.NativeEndian.AppendUint32(b, uint32(w))
		}
		return b
	}
	for name, c := range map[string]struct {
		server   int
		messages [][]byte
		want     startResult
		failed   bool
	}{
		"the server, and its child": {own, [][]byte{words('A', int32(own)), words('P', int32(own))},
			startResult{passing: own, pid: own}, false},
		"an error": {own, [][]byte{words('A', int32(own)), words('E', stepExec, int32(unix.ENOENT))},
			startResult{passing: own, pid: own}, true},
		"another":                    {own + 1, [][]byte{words('A', int32(own)), words('P', 1234)}, startResult{}, false},
		"nothing, and what is cut":   {own + 1, [][]byte{{}, {'A'}, words('P')}, startResult{}, false},
		"an error of whom it may be": {own + 1, [][]byte{words('E', stepExec, int32(unix.ENOENT))}, startResult{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(unix.SetNonblock(pair[0], true), unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PASSCRED,
				1)); err != nil {
				t.Fatal(err)
			}
			talk := os.NewFile(uintptr(pair[0]), "talk")
			defer talk.Close()
			talk.SetDeadline(time.Now().Add(10 * time.Second))
			descriptors := func() int {
				all, _ := os.ReadDir("/proc/self/fd")
				return len(all)
			}
			for _, m := range c.messages {
				// Each message carries an unwanted descriptor.
				if err := unix.Sendmsg(pair[1], m, unix.UnixRights(pair[1]), nil, 0); err != nil {
					t.Fatal(err)
				}
			}
			before := descriptors()
			go func() { // reads the request and then closes the other end
				for n, buf := 0, make([]byte, 64); n != 1; {
					var err error
					if n, err = unix.Read(pair[1], buf); err != nil {
						break
					}
				}
				unix.Close(pair[1])
			}()
			b, err := converse(talk, c.server, []byte("x"), false)
			if b != c.want {
				t.Errorf("%+v, not %+v", b, c.want)
			}
			var failed *startError
			if errors.As(err, &failed) != c.failed || (c.want.pid == 0) && err == nil {
				t.Errorf("error %v", err)
			}
			if now := descriptors(); now > before {
				t.Errorf("%d descriptors became %d", before, now)
			}
		})
	}
}
