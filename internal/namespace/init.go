package namespace

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/opencontainers/selinux/go-selinux/label"

	"github.com/kuri-cri/kuri/internal/seal"
)

import "C" // for init.c, the program of a pod's process 1

// Init is process 1 of a pod's PID namespace. It is a child of this process, which must reap it.
type Init struct {
	Pid   int      // in the PID namespace of this process
	PidNS *os.File // the namespace; containers can join it while the process lives
}

// initLimit bounds the start of an Init.
const initLimit = 10 * time.Second

// StartInit starts process 1 of a new PID namespace. It must be called on a thread in the pod's
// other namespaces, which the process inherits, or with a non-nil attr, with which the process
// creates them. The process has a root filesystem with nothing but /proc, with the SELinux label
// mountLabel unless that is "". It has no capabilities and runs as user 65535. oomScoreAdj is -1000
// to 1000; without CAP_SYS_RESOURCE the kernel does not accept less than the keeper's own.
func StartInit(oomScoreAdj int, mountLabel string, attr *syscall.SysProcAttr) (_ *Init, err error) {
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	} else {
		attr.Credential = &syscall.Credential{} // root of the new user namespace
	}
	attr.Cloneflags |= syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
	attr.Setsid = true
	said, say, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer said.Close()
	cmd := &exec.Cmd{
		Args:        []string{"kuri-init"},
		Env:         []string{"_KURI_POD_INIT=" + label.FormatMountLabel("mode=555,size=16k", mountLabel)},
		Dir:         "/",
		ExtraFiles:  []*os.File{say},
		SysProcAttr: attr,
	}
	err = seal.Program(cmd)
	if err == nil {
		err = cmd.Start()
	}
	say.Close()
	if err != nil {
		return nil, fmt.Errorf("start the pod's init process: %w", err)
	}
	defer func() {
		if err != nil {
			cmd.Process.Kill()
			_ = cmd.Wait()
			return
		}
		// From here on the caller waits for the process by its pid.
		_ = cmd.Process.Release()
	}()
	said.SetReadDeadline(time.Now().Add(initLimit))
	reason, err := io.ReadAll(said)
	if err != nil {
		return nil, fmt.Errorf("start the pod's init process: %w", err)
	}
	if len(reason) > 0 {
		return nil, fmt.Errorf("start the pod's init process: %s", reason)
	}
	pid := cmd.Process.Pid
	proc := "/proc/" + strconv.Itoa(pid)
	if err := os.WriteFile(proc+"/oom_score_adj", []byte(strconv.Itoa(oomScoreAdj)), 0); err != nil {
		return nil, fmt.Errorf("set oom_score_adj of the pod's init process to %d: %w", oomScoreAdj, err)
	}
	ns, err := os.Open(proc + "/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("hold the pod's PID namespace: %w", err)
	}
	return &Init{Pid: pid, PidNS: ns}, nil
}
