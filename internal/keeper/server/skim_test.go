package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Skimmed output is reported, output after it starts with a whole line, and a listener gets
// everything.
func TestSkim(t *testing.T) {
	for _, attached := range []bool{false, true} {
		t.Run(fmt.Sprintf("attached %v", attached), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			const rate = 20000
			log, err := openLog(logPlace{path: path}, logLimits{rate: rate})
			if err != nil {
				t.Fatal(err)
			}
			read, write, err := pipe()
			if err != nil {
				t.Fatal(err)
			}
			tap := newTap(read, log)
			heard := 0
			tap.send = func(data []byte) { heard += len(data) }
			tap.noClient = func() bool { return !attached }
			done := make(chan struct{})
			go func() { tap.follow(); close(done) }()
			out := os.NewFile(uintptr(write), "output")
			line := strings.Repeat("x", 99) + "\n"
			const lines = 100000
			for i := range lines / 100 {
				out.WriteString(strings.Repeat(line, 100))
				if i == lines/100/2 { // the second half comes later: the rate has recovered by then
					log.mu.Lock()
					log.allowed.left = rate * rateBurst
					log.mu.Unlock()
				}
			}
			out.Close()
			<-done
			log.close()
			body, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			written, dropped := 0, 0
			for entry := range strings.Lines(string(body)) {
				_, entry, _ = strings.Cut(entry, " ")
				switch {
				case entry == "stderr F "+line:
					written += len(line)
				case strings.Contains(entry, "[kuri] ") && strings.Contains(entry, " were dropped"):
					var n, m int
					if _, err := fmt.Sscanf(entry, "stderr F [kuri] %d bytes were", &n); err != nil {
						fmt.Sscanf(entry, "stderr F [kuri] %d lines (%d bytes)", &m, &n)
					}
					dropped += n
				default:
					t.Fatalf("entry %q", entry)
				}
			}
			// Output that was read before it was dropped counts with the prefixes of its entries.
			if all := len(line) * lines; written+dropped < all || written+dropped > all*3/2 || written < 2*rate ||
				written > 5*rate*rateBurst {
				t.Errorf("%d bytes are written and %d dropped, of %d", written, dropped, all)
			}
			if attached && heard != len(line)*lines {
				t.Errorf("who is attached has heard %d bytes of %d", heard, len(line)*lines)
			}
			if !attached && !tap.wide {
				t.Error("nothing was skimmed")
			}
		})
	}
}
