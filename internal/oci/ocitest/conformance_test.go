package ocitest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/oci"
)

// TestMain prepares this program as a keeper is.
func TestMain(m *testing.M) {
	runtime.LockOSThread()
	if len(os.Args) > 1 && os.Args[1] == "init" {
		oci.Init()
	}
	if len(os.Args) > 1 && os.Args[1] == "seccomp-filter" {
		oci.Filter()
	}
	if err := seal(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// seal executes this program again from a copy that nothing can write to, unless it is such a copy
// or the kernel cannot execute one.
func seal() error {
	const tried = "_KURI_TEST_SEALED"
	if exeseal.IsSelfExeCloned() || os.Getenv(tried) != "" {
		return nil
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	st, err := self.Stat()
	if err != nil {
		return err
	}
	copied, err := exeseal.CloneBinary(self, st.Size(), "ocitest", os.TempDir())
	if err != nil {
		return err
	}
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", copied.Fd()), os.Args, append(os.Environ(), tried+"=1"))
}

func TestEmbedded(t *testing.T) {
	if !exeseal.IsSelfExeCloned() {
		t.Skip("SKIP: our own init needs a sealed program, and this kernel executes none")
	}
	Run(t, Implementation{Open: func(root string) oci.Runtime { return oci.NewEmbedded(root) }, Init: oci.InitNative})
}

func TestLibcontainer(t *testing.T) {
	Run(t, Implementation{Open: func(root string) oci.Runtime { return oci.NewLibcontainer(root) }, Init: oci.InitLibcontainer})
}
