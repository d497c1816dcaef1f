package server

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkOutput logs the output of a process that prints as fast as it can, and reports the
// keeper's CPU time per MiB.
func BenchmarkOutput(b *testing.B) {
	for _, c := range []struct{ name, script string }{
		{"lines", "yes 'a line of the length that log lines usually have, or so, without any meaning' | head -c 268435456"},
		{"unbuffered", "i=0; while [ $i -lt 100000 ]; do echo 'a line of the length that log lines usually have'; i=$((i+1)); done"},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				read, write, err := pipe()
				if err != nil {
					b.Fatal(err)
				}
				log, err := openLog(logPlace{path: filepath.Join(b.TempDir(), "log")}, logLimits{size: 10 << 20, files: 1})
				if err != nil {
					b.Fatal(err)
				}
				cmd := exec.Command("/bin/busybox", "sh", "-c", c.script)
				out := os.NewFile(uintptr(write), "output")
				cmd.Stdout = out
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				out.Close()
				before := computed(b)
				newTap(read, log).follow()
				b.ReportMetric(float64((computed(b)-before).Microseconds())/1000, "cpu-ms/run")
				cmd.Wait()
				log.close()
			}
		})
	}
}

func computed(b *testing.B) time.Duration {
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
