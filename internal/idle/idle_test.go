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

// A process that has become idle maps less of its program than one that has just worked.
func TestAnIdleProcessGivesBackItsProgram(t *testing.T) {
	work() // so that much of the program is mapped
	before := fileKiB(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { Trim(ctx, 20*time.Millisecond); close(done) }()
	defer func() { cancel(); <-done }()
	for range 600 {
		time.Sleep(50 * time.Millisecond)
		if now := fileKiB(t); now < before*3/4 {
			work() // and it still runs
			return
		}
	}
	t.Errorf("%d KiB of the program are mapped, %d were before", fileKiB(t), before)
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
