package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// busyPhase starts pods of the lowest CPU weight while each core runs a process of normal weight.
func (b *bench) busyPhase(ctx context.Context) error {
	if err := b.freshAll(ctx); err != nil {
		return err
	}
	defer keepBusy()()
	return b.podsOf(ctx, "busy cores", func(*podRequest) {})
}

// keepBusy keeps every core busy until the returned function is called.
func keepBusy() (rest func()) {
	var enough atomic.Bool
	var threads sync.WaitGroup
	for range goruntime.NumCPU() {
		threads.Go(func() {
			goruntime.LockOSThread()
			for !enough.Load() {
			}
		})
	}
	return func() {
		enough.Store(true)
		threads.Wait()
	}
}

// hostMounts is the number of additional mounts of the node, as on one with many volumes.
const hostMounts = 1000

// mountsPhase starts pods on a node with many mounts.
func (b *bench) mountsPhase(ctx context.Context) (err error) {
	if err := b.freshAll(ctx); err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "mounts")
	defer func() { err = errors.Join(err, unmount(dir)) }()
	for n := range hostMounts {
		at := filepath.Join(dir, strconv.Itoa(n))
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("bench", at, "tmpfs", 0, "size=64k"); err != nil {
			return fmt.Errorf("mount %s: %w", at, err)
		}
	}
	return b.podsOf(ctx, fmt.Sprintf("%d host mounts", hostMounts), func(*podRequest) {})
}

// unmount removes the mounts below dir.
func unmount(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		unix.Unmount(filepath.Join(dir, e.Name()), unix.MNT_DETACH)
	}
	return os.RemoveAll(dir)
}
