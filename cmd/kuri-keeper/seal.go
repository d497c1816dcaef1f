package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/keeper"
)

// seal makes sure that the program runs from a copy that nothing can write to, by starting it again from one.
//
// The init of each container runs this program up to its exec, within reach of the container (CVE-2019-5736); libcontainer
// would make such a copy each time. Where the kernel lets no such copy be executed it goes on doing that.
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

// nameThreads gives the process its name, for ps, instead of the number of the copy's descriptor. New threads inherit it.
func nameThreads(name string) {
	files, _ := filepath.Glob("/proc/self/task/*/comm")
	for _, f := range files {
		os.WriteFile(f, []byte(name), 0) // a thread may have ended
	}
}
