package server

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A keeper that is ended has written everything it still had to read: the last piece of a log is
// not lost.
func TestPredecessorWritesWhatItHasToRead(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	log := filepath.Join(t.TempDir(), "log")
	reader := exec.Command("sh", "-c", "sleep 0.2; exec cat <&3 >"+log)
	reader.ExtraFiles = []*os.File{read}
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	read.Close()
	printed := bytes.Repeat([]byte("a line of a container\n"), 2000)
	if _, err := write.Write(printed); err != nil { // it fits into the pipe
		t.Fatal(err)
	}

	old, err := openPredecessor(reader.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer old.close()
	f, err := old.take(3)
	if err != nil {
		t.Fatal(err)
	}
	old.read = append(old.read, f)
	if fd, ok := old.pipes[pipeEnd{inodeOf(f), false}]; !ok || fd != 3 {
		t.Errorf("its descriptor of the pipe is %d, %v", fd, ok)
	}
	old.drain(t.Context())
	if err := old.kill(); err != nil {
		t.Fatal(err)
	}
	reader.Wait()
	if written, err := os.ReadFile(log); err != nil || !bytes.Equal(written, printed) {
		t.Errorf("%d of %d bytes are written: %v", len(written), len(printed), err)
	}
	if err := unix.Kill(old.pid, 0); err != unix.ESRCH {
		t.Errorf("it lives on: %v", err)
	}
}
