package idle

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Trim gives memory back whenever the process has been idle for two periods, until ctx ends. Idle
// means that it used less than one percent of a CPU. Giving back takes up to 12 ms of CPU time. So
// it costs a process that is always a little busy at most a twentieth of its CPU time, or 12 ms in
// every thirty periods. Without work since the last time it does nothing.
func Trim(ctx context.Context, period time.Duration) {
	const (
		calm   = 2
		enough = 250 * time.Millisecond // CPU time
		seldom = 30                     // periods, after which a little work is enough
		little = 20 * time.Millisecond  // CPU time: that of a few pods
	)
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	given, last := -enough, time.Duration(0) // CPU time of the process at the last time, and at the last tick
	for quiet, since := 0, 0; ; since++ {    // since: ticks since the last time
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := used()
		if now-last < period/100 {
			quiet++
		} else {
			quiet = 0
		}
		last = now
		due := now-given >= enough || since >= seldom && now-given >= little
		if quiet < calm || !due {
			continue
		}
		debug.FreeOSMemory()
		if err := unmapProgram(); err != nil {
			slog.Warn("the program's pages stay mapped while it is idle", "err", err)
			return
		}
		given, last, since = used(), used(), 0
	}
}

// used returns the CPU time of this process.
func used() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// unmapProgram drops the mapped pages of this program's file. Each is mapped again when it is used.
func unmapProgram() error {
	ranges, err := programMappings()
	if err != nil {
		return err
	}
	for _, r := range ranges {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, r.start, r.end-r.start, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("unmap the program's pages: %w", errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// programMappings returns the mappings of this program's file from which pages can be dropped:
// those that cannot be written to and have no page of their own, as a debugger's breakpoint or a
// relocation makes one.
func programMappings() ([]mapping, error) {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []mapping
	var m mapping
	ours := false
	for lines := bufio.NewScanner(f); ; {
		if !lines.Scan() {
			return all, lines.Err()
		}
		// "00400000-00e00000 r-xp 00000000 fe:00 1234    /usr/bin/kurid", and then lines such as "Anonymous:   0 kB".
		fields := strings.Fields(lines.Text())
		if len(fields) == 3 && fields[0] == "Anonymous:" {
			if ours && fields[1] == "0" {
				all = append(all, m)
			}
			continue
		}
		var perms string
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s", &m.start, &m.end, &perms); n == 3 {
			ours = !strings.Contains(perms, "w") && strings.HasSuffix(perms, "p") && strings.HasSuffix(lines.Text(), " "+exe)
		}
	}
}
