package threads

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// TimerSlack is the timer slack of our daemons. While any goroutine runs, the Go runtime's monitor
// thread (sysmon) wakes every 20 µs, or every 70 µs with the kernel's default slack of 50 µs. See
// docs/performance.md for what that costs.
const TimerSlack = 500 * time.Microsecond

// SetTimerSlack lets the kernel delay the timers of all threads of this process by up to slack: see
// PR_SET_TIMERSLACK(2const). Threads and processes that they start inherit it. It requires
// CAP_SYS_NICE.
func SetTimerSlack(slack time.Duration) error {
	text := strconv.FormatInt(slack.Nanoseconds(), 10)
	done := make(map[string]bool)
	for more := true; more; { // a thread may have started another before its own turn
		more = false
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list the threads of this process: %w", err)
		}
		for _, t := range tasks {
			if done[t.Name()] {
				continue
			}
			err := os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", []byte(text), 0)
			if err != nil && !gone(err) {
				return fmt.Errorf("set the timer slack of a thread: %w", err)
			}
			done[t.Name()], more = true, true
		}
	}
	return nil
}

// gone reports whether a file in /proc is of a thread that has ended.
func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }
