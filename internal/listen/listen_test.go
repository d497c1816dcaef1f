package listen

import (
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/holder"
)

// nobody returns a client of a holder that does not run.
func nobody(t *testing.T) *holder.Client { return holder.Connect(t.TempDir()) }

func dir(t *testing.T) string {
	d, err := os.MkdirTemp("", "l") // t.TempDir's path may be longer than a socket's may be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

// Without a holder, the socket's file is removed with the process.
func TestWithoutAHolder(t *testing.T) {
	path := filepath.Join(dir(t), "sub", "kuri.sock")
	l, err := New(nobody(t)).Unix(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if _, err := New(nobody(t)).Unix(path); !errors.Is(err, fault.Precondition) {
		t.Errorf("a second one on the same path: %v", err)
	}
	l.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}

func TestFileThatIsNotASocket(t *testing.T) {
	path := filepath.Join(dir(t), "file")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(nobody(t)).Unix(path); !errors.Is(err, fault.Precondition) {
		t.Errorf("%v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("the file has %q", text)
	}
}

// TestSystemd passes a socket like systemd to this program. A client that dials before the program
// opens the socket is served.
func TestSystemd(t *testing.T) {
	path := filepath.Join(dir(t), "kuri.sock")
	if os.Getenv("KURI_LISTEN_AT") != "" {
		l, err := New(nobody(t)).Unix(os.Getenv("KURI_LISTEN_AT"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "served")
		c.Close()
		l.Close()
		return
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	early, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run '^TestSystemd$'`, os.Args[0])
	cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "KURI_LISTEN_AT="+path)
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v: %s", err, out)
	}
	if text, err := io.ReadAll(early); err != nil || string(text) != "served" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the socket's file is systemd's to remove: %v", err)
	}
}

// A removed socket file is recreated at the same path, even if its directory is removed, and
// repeatedly. Existing connections go on.
func TestRemovedFileComesBack(t *testing.T) {
	path := filepath.Join(dir(t), "sub", "kuri.sock")
	all := New(nobody(t))
	defer all.Close()
	l, err := all.Unix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	echoes := func(c net.Conn) bool {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 2)
		_, err := c.Write([]byte("hi"))
		if err == nil {
			_, err = io.ReadFull(c, b)
		}
		return err == nil && string(b) == "hi"
	}
	var first net.Conn
	for _, remove := range []func() error{
		nil,
		func() error { return os.Remove(path) },
		func() error { return os.Remove(path) },
		func() error { return os.RemoveAll(filepath.Dir(path)) },
		func() error { return os.Rename(filepath.Dir(path), filepath.Dir(path)+".old") },
		func() error { return os.Rename(path, path+".old") },
	} {
		if remove != nil {
			if err := remove(); err != nil {
				t.Fatal(err)
			}
		}
		var c net.Conn
		for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
			if c, err = net.Dial("unix", path); err == nil && echoes(c) {
				break
			}
			if time.Since(began) > 30*time.Second {
				t.Fatalf("it is not served again: %v", err)
			}
		}
		if first == nil {
			first = c
			defer first.Close()
		} else {
			c.Close()
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", info, err)
		}
	}
	if !echoes(first) {
		t.Error("what was connected from the beginning has been cut off")
	}
	l.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("closed, its file is left: %v", err)
	}
}
