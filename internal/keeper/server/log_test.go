package server_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestLogFormat(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	long := strings.Repeat("x", 40000)
	j := n.run(box, `printf 'one\n\ntwo\n'; head -c 40000 /dev/zero | tr '\0' x; echo; printf 'no end'`)
	n.wait(j)
	if got, want := n.output(j), "one\n\ntwo\n"+long+"\nno end"; got != want {
		t.Errorf("output of %d bytes, want %d: %.60q…", len(got), len(want), got)
	}
	body, err := os.ReadFile(j.LogPath)
	n.must(err)
	var tags []string
	for line := range strings.Lines(string(body)) {
		parts := strings.SplitN(line, " ", 4)
		tags = append(tags, parts[1]+" "+parts[2])
		if len(parts[3]) > 16384+1 {
			t.Errorf("a part of %d bytes", len(parts[3]))
		}
	}
	want := []string{"stdout F", "stdout F", "stdout F", "stdout P", "stdout P", "stdout F", "stdout P"}
	if !slices.Equal(tags, want) {
		t.Errorf("tags %q", tags)
	}
	if st, err := os.Stat(j.LogPath); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("log %v, %v", st.Mode(), err)
	}
}

func TestLogRotation(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, `i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done`)
	n.waitOutput(j, "3\n")
	n.must(os.Rename(j.LogPath, j.LogPath+".1"))
	n.must(n.ReopenLog(t.Context(), j.Id))
	n.waitOutput(j, "\n")
	n.must(n.Signal(t.Context(), j.Id, syscall.SIGKILL, false))
	n.wait(j)
	second := n.output(j)
	j.LogPath += ".1"
	var want strings.Builder
	first := n.output(j)
	for i := range strings.Count(first+second, "\n") {
		fmt.Fprintln(&want, i)
	}
	if first+second != want.String() || first == "" || second == "" {
		t.Errorf("lines lost: %q then %q", first, second)
	}
}

func TestLogNeedsAFileOfItsOwn(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	target := filepath.Join(t.TempDir(), "victim")
	j := n.job(box, "echo x")
	n.must(os.Symlink(target, j.LogPath))
	_, err := n.Create(t.Context(), j.CreateRequest)
	wantKind(t, err, fault.Invalid)
	if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the symlink was followed: %v", err)
	}
	j = n.job(box, "echo x")
	n.must(unix.Mkfifo(j.LogPath, 0o600))
	_, err = n.Create(t.Context(), j.CreateRequest)
	wantKind(t, err, fault.Precondition) // without a reader, the open itself fails
	j = n.job(box, "echo x", func(j *job) { j.LogPath = "/nonexistent/dir/0.log" })
	_, err = n.Create(t.Context(), j.CreateRequest)
	wantKind(t, err, fault.Precondition)
}

func TestFullDiskBlocksNobody(t *testing.T) {
	n := newNode(t)
	small := t.TempDir()
	n.must(unix.Mount("tmpfs", small, "tmpfs", 0, "size=64k"))
	defer unix.Unmount(small, unix.MNT_DETACH)
	box := n.sandbox()
	j := n.run(box, `i=0; while [ $i -lt 20000 ]; do echo "line $i"; i=$((i+1)); done; echo done >&2; touch /tmp/through; sleep 1000`,
		func(j *job) { j.LogPath = filepath.Join(small, "0.log") })
	through := filepath.Join(j.Rootfs.Upperdir, "tmp/through")
	if !eventually(func() bool { _, err := os.Stat(through); return err == nil }) {
		t.Fatal("the application is held up")
	}
	// There is space again: after a rotation, logging continues. The output still in the pipe may
	// fill the disk once more.
	if !eventually(func() bool {
		n.must(os.Remove(j.LogPath))
		n.must(n.ReopenLog(t.Context(), j.Id))
		n.exec(j, "echo from the application >/proc/1/fd/1")
		for range 20 {
			if body, err := os.ReadFile(j.LogPath); err == nil && bytes.Contains(body, []byte(" F from the application\n")) {
				return true
			}
			time.Sleep(10 * time.Millisecond)
		}
		return false
	}) {
		t.Error("the log does not go on")
	}
}
