package threads

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestABurstsThreadsEnd(t *testing.T) {
	const burst, most = 60, 20
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	defer done.Wait()
	defer cancel()

	busy(t, burst, func() {
		if n := count(); n < burst {
			t.Fatalf("%d threads while %d goroutines are in system calls", n, burst)
		}
	})
	done.Go(func() { Trim(ctx, most, 10*time.Millisecond) })
	var n int
	for range 1000 {
		if n = count(); n <= most {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n > most {
		t.Errorf("%d threads are left", n)
	}
	busy(t, burst, func() {}) // and a next one finds its threads
}

// busy has goroutines wait in system calls while fn runs.
func busy(t *testing.T, n int, fn func()) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fd := int(read.Fd()) // makes it a blocking one
	var calls sync.WaitGroup
	began := make(chan struct{}, n)
	for range n {
		calls.Go(func() {
			began <- struct{}{}
			unix.Read(fd, make([]byte, 1))
		})
	}
	for range n {
		<-began
	}
	for range 200 {
		if count() >= n {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	fn()
	write.Close()
	calls.Wait()
	read.Close()
}
