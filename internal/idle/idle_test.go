package idle

import (
	"context"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A process that has become idle maps less of its program than one that has just worked: after
// its start, and later even if it has worked only a little.
func TestAnIdleProcessGivesBackItsProgram(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	work() // so that much of the program is mapped
	mapped := fileKiB(t)
	go func() { Trim(ctx, 20*time.Millisecond); close(done) }()
	defer func() { cancel(); <-done }()
	for _, spent := range []time.Duration{0, 30 * time.Millisecond} {
		for until := used() + spent; used() < until; {
		}
		work()
		left := fileKiB(t)
		// Looking is work too. With 250 ms of it, the second case would be like the first.
		for until := used() + 150*time.Millisecond; left >= mapped*3/4 && used() < until; left = fileKiB(t) {
			time.Sleep(100 * time.Millisecond)
		}
		if left >= mapped*3/4 {
			t.Fatalf("after %s of work %d KiB of the program are mapped, %d were before", spent, left, mapped)
		}
	}
	work() // it still runs
}

// Pages that are not the file's would be lost.
func TestOnlyTheFilesOwnPagesAreDropped(t *testing.T) {
	all, err := programMappings()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, m := range all {
		text := reflect.ValueOf(TestOnlyTheFilesOwnPagesAreDropped).Pointer()
		found = found || m.start <= text && text < m.end
		data := uintptr(unsafe.Pointer(&written))
		if m.start <= data && data < m.end {
			t.Errorf("%x-%x has variables", m.start, m.end)
		}
	}
	if !found {
		t.Errorf("this function is not in %x", all)
	}
	written++
	if err := unmapProgram(); err != nil {
		t.Fatal(err)
	}
	if written != 2 {
		t.Errorf("a variable has become %d", written)
	}
}

var written = 1

// work maps the whole program, as using it does.
func work() {
	all, err := programMappings()
	if err != nil {
		return
	}
	for _, m := range all {
		unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_POPULATE_READ)
	}
}

// fileKiB returns how much of all files this process has mapped.
func fileKiB(t *testing.T) int {
	t.Helper()
	body, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "RssFile:" {
			n, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile in /proc/self/status")
	return 0
}
