package namespace

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestCheckSysctl(t *testing.T) {
	own := Config{Network: true, IPC: true, UTS: true}
	for _, c := range []struct {
		name string
		cfg  Config
		ok   bool
	}{
		{"net.ipv4.ip_forward", own, true},
		{"net/ipv4/ip_forward", own, true},
		{"net.ipv4.conf.eth0/1.forwarding", own, true},
		{"net.ipv4.ip_forward", Config{IPC: true}, false},
		{"kernel.shmmax", own, true},
		{"kernel/sem", own, true},
		{"kernel.shmmax", Config{Network: true}, false},
		{"fs.mqueue.msg_max", own, true},
		{"fs.mqueue.msg_max", Config{}, false},
		{"kernel.domainname", own, true},
		{"kernel/domainname", Config{Network: true, IPC: true}, false},
		{"kernel.hostname", own, false},
		{"kernel.shmmax.x", own, false},
		{"vm.swappiness", own, false},
		{"netx.y", own, false},
		{"net", own, false},
		{"", own, false},
		{"/net/ipv4/ip_forward", own, false},
		{"net/../kernel/panic", own, false},
		{"net.//.kernel.panic", own, false},
	} {
		_, err := CheckSysctl(c.name, c.cfg)
		if (err == nil) != c.ok || (err != nil && !errors.Is(err, fault.Invalid)) {
			t.Errorf("%q with %+v: %v", c.name, c.cfg, err)
		}
	}
}

// FuzzCheckSysctl: what is accepted stays in the directories of the namespaces.
func FuzzCheckSysctl(f *testing.F) {
	for _, name := range []string{"net.ipv4.ip_forward", "net/../x", "net.//.x", "fs.mqueue.x", "kernel.sem", "./net.x",
		"net.\x00"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		key, err := CheckSysctl(name, Config{Network: true, IPC: true, UTS: true})
		if err != nil {
			return
		}
		path := filepath.Join("/proc/sys", key)
		for _, dir := range []string{"/proc/sys/net", "/proc/sys/fs/mqueue", "/proc/sys/kernel/"} {
			if strings.HasPrefix(path, dir) {
				return
			}
		}
		t.Errorf("%q leads to %s", name, path)
	})
}
