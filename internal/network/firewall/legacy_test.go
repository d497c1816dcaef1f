package firewall

import (
	"fmt"
	"os"
	"testing"

	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/networktest"
)

// TestLegacyTableIsNotMade: looking at iptables-legacy makes no table of it, which the kernel does for whoever asks.
func TestLegacyTableIsNotMade(t *testing.T) {
	ns := networktest.NewNetns(t)
	networktest.Must(t, netns.Do(ns, func() error {
		if _, err := os.Stat(legacy4.names); err != nil {
			t.Skip("SKIP: the kernel has no ip_tables")
		}
		for _, l := range []legacy{legacy4, legacy6} {
			drops, err := l.dropsFrom("kuri0")
			if err != nil || drops {
				t.Errorf("%s: %t, %v", l.program, drops, err)
			}
			if got, err := os.ReadFile(l.names); err != nil || len(got) > 0 {
				t.Errorf("%s has tables now: %q, %v", l.program, got, err)
			}
		}
		return nil
	}))
}

// FuzzLegacy: no table makes the walk run away or read beyond it.
func FuzzLegacy(f *testing.F) {
	entry := func(target int32, next int) []byte {
		e := make([]byte, 112+40)
		e[84+4], e[84+6], e[112], e[112+32] = 112, byte(next), 40, byte(target)
		return e
	}
	f.Add(entry(-1, 152), 0, false)
	f.Add(append(entry(0, 152), entry(0, 152)...), 152, false) // jumps to itself
	f.Add(make([]byte, 500), 0, true)
	f.Fuzz(func(t *testing.T, entries []byte, at int, six bool) {
		l := legacy4
		if six {
			l = legacy6
		}
		w := walk{rules: func(at string) ([]step, error) { return l.steps(entries, at, "kuri0") }, known: map[string]fate{}}
		_, _ = w.fateIn(fmt.Sprint(at), 0)
	})
}
