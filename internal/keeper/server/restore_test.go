package server_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/kuri-cri/kuri/internal/keeper"
)

// A keeper notices the removal of its files and creates all of them again without a request. A
// container that exits while its bundle is missing still gets an exit record.
func TestRestore(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, "sleep 100000")
	info, err := n.Info(t.Context())
	n.must(err)
	var want []string
	for _, name := range []string{
		"keeper.sock", "keeper-session.sock", "holder.sock", "holder.lock", "keeper/lock", "mounts",
		"keeper/sandboxes/" + box.Id + ".json", "keeper/containers/" + j.Id + ".json", "mounts/.oci/" + j.Id + "/state.json",
	} {
		want = append(want, filepath.Join(n.state, name))
	}
	missing := func() (left []string) {
		for _, path := range want {
			if _, err := os.Stat(path); err != nil {
				left = append(left, path)
			}
		}
		return left
	}
	if left := missing(); len(left) > 0 {
		t.Fatalf("not there before: %v", left)
	}
	os.RemoveAll(n.state) // everything except the mount point
	if !eventually(func() bool { return len(missing()) == 0 }) {
		t.Fatalf("not made anew: %v", missing())
	}
	other := keeper.Connect(n.state)
	defer other.Close()
	again, err := other.Info(t.Context())
	if err != nil || again.Pid != info.Pid {
		t.Fatalf("keeper %v answers, was %d: %v", again, info.Pid, err)
	}
	if code, out, _ := n.exec(j, "echo hi"); code != 0 || out != "hi\n" {
		t.Errorf("an exec ended with %d and said %q", code, out)
	}
	n.must(os.RemoveAll(j.Bundle))
	n.must(n.Signal(t.Context(), j.Id, 9, true))
	n.wait(j)
	if exit, err := keeper.ReadExit(j.Bundle); err != nil || exit.Code != 137 {
		t.Errorf("the record of the exit: %+v, %v", exit, err)
	}
}

// Each directory of the keeper's records is created again if only that one is removed.
func TestRestoreOfOneDirectory(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 100000")
	for _, kind := range []string{"execs", "sandboxes", "containers"} {
		dir := filepath.Join(n.state, "keeper", kind)
		n.must(os.RemoveAll(dir))
		if !eventually(func() bool { _, err := os.Stat(dir); return err == nil }) {
			t.Fatalf("%s is not made anew", dir)
		}
	}
	if code, out, _ := n.exec(j, "echo hi"); code != 0 || out != "hi\n" {
		t.Errorf("an exec ended with %d and said %q", code, out)
	}
}

// The records of running execs are restored: an exec survives the keeper that started it even if
// its record was removed. The record of an exec that is over does not return.
func TestRestoreOfExecs(t *testing.T) {
	n := newNode(t)
	j := n.run(n.sandbox(), "sleep 100000")
	over := n.beginExec(j, "echo begun", false, false)
	<-over.done
	x := n.beginExec(j, "echo begun; read line; echo $line; exit 5", false, true)
	x.says(t, "begun")
	dir := filepath.Join(n.state, "keeper", "execs")
	n.must(os.RemoveAll(dir))
	if !eventually(func() bool { files, _ := filepath.Glob(dir + "/*.json"); return len(files) == 1 }) {
		files, _ := filepath.Glob(dir + "/*")
		t.Fatalf("the records are %v", files)
	}
	n.killKeeper(false)
	if _, err := x.stdin.Write([]byte("alive\n")); err != nil {
		t.Fatal(err)
	}
	x.says(t, "alive")
	<-x.done
	if x.err != nil || x.code != 5 {
		t.Errorf("it ended with %d: %v", x.code, x.err)
	}
	n.wantNoExecs(j)
}
