package seal

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets this program sleep as a child of a test.
func TestMain(m *testing.M) {
	if os.Getenv("KURI_TEST_SLEEP") != "" {
		os.Stdout.WriteString("here\n")
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

// The program of a sealed process cannot be opened for writing, neither while it runs nor after it has ended.
func TestASealedProgramCannotBeWritten(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	for way, seal := range map[string]func(string) (*os.File, error){"overlay": overlaid, "copy": copied} {
		t.Run(way, func(t *testing.T) {
			f, err := seal("/proc/self/exe")
			if err != nil && way == "overlay" {
				t.Skipf("SKIP: this kernel mounts no such overlay: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			cannotBeWritten(t, &exec.Cmd{Path: "/proc/self/fd/3", Args: []string{"sealed"}, ExtraFiles: []*os.File{f}})
		})
	}
	t.Run("program", func(t *testing.T) {
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		cmd := &exec.Cmd{Args: []string{"sealed"}, ExtraFiles: []*os.File{null}}
		if err := Program(cmd); err != nil {
			t.Fatal(err)
		}
		cannotBeWritten(t, cmd)
	})
}

func cannotBeWritten(t *testing.T, cmd *exec.Cmd) {
	cmd.Env = []string{"KURI_TEST_SLEEP=1"}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	exe := fmt.Sprintf("/proc/%d/exe", cmd.Process.Pid)
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	its, err := os.Stat(exe)
	if err != nil {
		t.Fatal(err)
	}
	if os.SameFile(own, its) || own.Size() != its.Size() {
		t.Errorf("the child runs %v, this process %v", its, own)
	}
	held, err := unix.Open(exe, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(held)
	// write opens the program for writing and writes, as a container would.
	write := func() error {
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", held), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte("x"))
			unix.Close(fd)
		}
		return err
	}
	if write() == nil {
		t.Error("its program can be written to while it runs")
	}
	cmd.Process.Kill()
	cmd.Process.Wait()
	if err := write(); err == nil || errors.Is(err, unix.ETXTBSY) { // the file itself is busy: this process runs it
		t.Errorf("after its end, writing to its program: %v", err)
	}
}

// A program that has been replaced on disk is not mistaken for its successor.
func TestAReplacedProgramIsNotItsSuccessor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	path := t.TempDir() + "/program"
	install := func(content string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	install("old")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	exe := fmt.Sprintf("/proc/self/fd/%d", f.Fd()) // like /proc/self/exe
	sealed, err := overlaid(exe)
	if err != nil {
		t.Skipf("SKIP: this kernel mounts no such overlay: %v", err)
	}
	defer sealed.Close()
	install("new")
	if f, err := overlaid(exe); err == nil {
		f.Close()
		t.Error("the file in its place is sealed")
	}
	if body, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", sealed.Fd())); err != nil || string(body) != "old" {
		t.Errorf("the sealed program is %q, %v", body, err)
	}
	again, err := copied(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	var body strings.Builder
	if _, err := again.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := again.WriteTo(&body); err != nil || body.String() != "old" {
		t.Errorf("the copy is %q, %v", body.String(), err)
	}
}
