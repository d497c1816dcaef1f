package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/keeper"
)

// seal executes the program again from a sealed copy, unless it already runs from one.
//
// The init of a container that libcontainer starts runs this program up to its exec, where the container could write to the
// file (CVE-2019-5736). Without a sealed copy libcontainer makes one for every container, and it still does so where the
// kernel does not execute sealed copies.
func seal() error {
	const tried = "_KURI_SEALED"
	defer os.Unsetenv(tried)
	defer nameThreads("kuri-keeper")
	if exeseal.IsSelfExeCloned() || os.Getenv(tried) != "" {
		return nil
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	st, err := self.Stat()
	if err != nil {
		return err
	}
	copied, err := exeseal.CloneBinary(self, st.Size(), keeper.CopyName(st), os.TempDir())
	if err != nil {
		return fmt.Errorf("copy the program: %w", err)
	}
	path := fmt.Sprintf("/proc/self/fd/%d", copied.Fd())
	if err := unix.Exec(path, os.Args, append(os.Environ(), tried+"=1")); err != nil {
		return fmt.Errorf("start the copied program: %w", err)
	}
	return nil
}

// nameThreads sets the name that ps shows. Otherwise it would be the number of the sealed copy's descriptor. New threads
// inherit it.
func nameThreads(name string) {
	files, _ := filepath.Glob("/proc/self/task/*/comm")
	for _, f := range files {
		_ = os.WriteFile(f, []byte(name), 0) // a thread may have exited
	}
}
