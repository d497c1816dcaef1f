package ocitest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/seal"
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
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestEmbedded(t *testing.T) {
	if err := seal.Check(); err != nil {
		t.Skipf("SKIP: our own init needs a sealed program: %v", err)
	}
	Run(t, Implementation{Open: func(root string) oci.Runtime { return oci.NewEmbedded(root) }, Init: oci.InitNative})
}

func TestLibcontainer(t *testing.T) {
	Run(t, Implementation{Open: func(root string) oci.Runtime { return oci.NewLibcontainer(root) },
		Init: oci.InitLibcontainer})
}
