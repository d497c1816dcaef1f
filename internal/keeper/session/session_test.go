package session

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/kuri-cri/kuri/internal/keeper/api"
)

// pair returns both ends of a connection.
func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = NewConn(c.(*net.UnixConn))
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

func TestMessagesCarryDescriptors(t *testing.T) {
	a, b := pair(t)
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	if err := a.Send(&api.SessionReply{Files: []string{"stdout"}}, write); err != nil {
		t.Fatal(err)
	}
	write.Close()
	long := &api.SessionRequest{Ask: &api.SessionRequest_Exec{Exec: &api.ExecSession{Id: "x",
		Args: []string{string(make([]byte, 1<<20))}}}}
	go a.Send(long)

	reply := &api.SessionReply{}
	files, err := b.Receive(reply)
	if err != nil || len(files) != 1 || reply.Files[0] != "stdout" {
		t.Fatalf("%v %v %v", reply, files, err)
	}
	got := &api.SessionRequest{}
	if more, err := b.Receive(got); err != nil || len(more) != 0 || !proto.Equal(got, long) {
		t.Fatalf("%d files, %v", len(more), err)
	}
	files[0].WriteString("hello")
	files[0].Close()
	if body, err := io.ReadAll(read); err != nil || string(body) != "hello" {
		t.Errorf("%q %v: an end is still open, or nothing came", body, err)
	}
	if err := a.Finish(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(reply); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	b.AwaitEnd() // returns
}

// FuzzReceive receives hostile bytes: they are an error or a message, and no descriptor leaks.
func FuzzReceive(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, 8, 1})
	f.Add([]byte{255, 255, 255, 255})
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		a, b := pair(t)
		go func() {
			a.unix.Write(body)
			a.Close()
		}()
		for range len(body) + 1 {
			if _, err := b.Receive(&api.SessionRequest{}); err != nil {
				return
			}
		}
		t.Error("more messages than bytes")
	})
}

func TestSourceDoesNotWaitForAHolderOfThePipe(t *testing.T) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[1]) // the holder
	src, err := NewSource(p[0], "stdout")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(p[1], []byte("last words")); err != nil {
		t.Fatal(err)
	}
	src.Finish(20 * time.Millisecond)
	var got []byte
	start := time.Now()
	src.CopyTo(func(b []byte) { got = append(got, b...) })
	if string(got) != "last words" || time.Since(start) > 20*time.Second {
		t.Errorf("%q after %s", got, time.Since(start))
	}
	if _, err := src.File.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the source is left open: %v", err)
	}
}
