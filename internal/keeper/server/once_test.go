package server_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/keeper/session"
)

// ran returns the lines that commands have appended to a file of the container.
func (n *node) ran(j *job) []string {
	body, err := os.ReadFile(filepath.Join(j.Rootfs.Upperdir, "ran"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	return strings.Fields(string(body))
}

// The keeper is killed at each step of an exec. The command runs once, and its caller gets the
// result. If nobody can know whether it has run, as with libcontainer's execs, it runs at most once
// and the caller gets an error.
func TestExecsRunOnce(t *testing.T) {
	killed := killableKeeper(t)
	const script, forkServer = "echo $0 >>/ran; echo said; exit 3", "the fork server"
	for way, change := range map[string]func(*job){forkServer: func(*job) {}, "libcontainer": byLibcontainer} {
		t.Run("by "+way, func(t *testing.T) {
			n := newNodeOf(t, killed)
			j := n.run(n.sandbox(), "sleep 1000", change)
			point := filepath.Join(n.state, "failpoint")
			for _, step := range steps(t) {
				if !strings.HasPrefix(step, "exec: ") || step == "exec: intended" && way == forkServer {
					continue
				}
				for _, tty := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, tty %t", step, tty), func(t *testing.T) {
						n.must(os.WriteFile(point, []byte(step), 0o600))
						name := newID()
						var out bytes.Buffer
						code, err := n.Exec(t.Context(), j.Id, []string{"/bin/sh", "-c", script, name}, tty, keeper.Streams{Stdout: &out})
						if _, serr := os.Stat(point); serr == nil {
							t.Error("the keeper was not killed")
						}
						times := strings.Count(strings.Join(n.ran(j), " "), name)
						switch {
						case err == nil:
							if said := strings.TrimSpace(out.String()); code != 3 || said != "said" || times != 1 {
								t.Errorf("code %d, output %q, run %d times", code, said, times)
							}
						case way == forkServer || !errors.Is(err, fault.Unavailable) ||
							!strings.Contains(err.Error(), "it may have run") || times > 1:
							t.Errorf("%v, run %d times", err, times)
						}
						n.wantNoExecs(j)
					})
				}
			}
		})
	}
}

// A kurid of an earlier version does not release processes itself. An exec that a dead keeper had
// started for it may have run, and is not started again.
func TestExecOfAnEarlierCallerRunsOnce(t *testing.T) {
	n := newNodeOf(t, killableKeeper(t))
	j := n.run(n.sandbox(), "sleep 1000")
	n.must(os.WriteFile(filepath.Join(n.state, "failpoint"), []byte("exec: recorded"), 0o600))
	req := &api.SessionRequest{Ask: &api.SessionRequest_Exec{Exec: &api.ExecSession{
		Id: j.Id, Args: []string{"/bin/sh", "-c", "echo once >>/ran; exit 3"}, Session: newID(),
	}}}
	ask := func() (*session.Conn, *api.SessionReply, error) {
		var c net.Conn
		var err error
		eventually(func() bool { // a new keeper serves its other socket first
			c, err = net.Dial("unix", filepath.Join(n.state, "keeper-session.sock"))
			return err == nil
		})
		n.must(err)
		conn, reply := session.NewConn(c.(*net.UnixConn)), &api.SessionReply{}
		t.Cleanup(func() { conn.Close() })
		n.must(conn.Send(req))
		files, err := conn.Receive(reply)
		for _, f := range files {
			f.Close()
		}
		return conn, reply, err
	}
	info, err := n.Info(t.Context())
	n.must(err)
	if _, reply, err := ask(); err == nil {
		t.Fatalf("the keeper was not killed: %v", reply)
	}
	n.awaitKeeper(int(info.Pid))
	if _, reply, err := ask(); err != nil || !strings.Contains(reply.Message, "it may have run") {
		t.Errorf("%v, %v", reply, err)
	}
	if ran := n.ran(j); len(ran) > 1 {
		t.Errorf("%q", ran)
	}
	n.wantNoExecs(j)

	// If the keeper does not die, the command runs and its exit is reported.
	req.GetExec().Session = newID()
	conn, reply, err := ask()
	if err != nil || len(reply.Files) != 2 {
		t.Fatalf("%v, %v", reply, err)
	}
	if _, err := conn.Receive(reply); err != nil || reply.GetExit().GetCode() != 3 {
		t.Errorf("%v, %v", reply, err)
	}
	if ran := n.ran(j); len(ran) == 0 {
		t.Error("it has not run")
	}
}
