package sysctl

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestParse(t *testing.T) {
	for name, want := range map[string]struct {
		key string
		ns  Namespace
	}{
		"net.ipv4.ip_forward":             {"net/ipv4/ip_forward", Network},
		"net/ipv4/ip_forward":             {"net/ipv4/ip_forward", Network},
		"net.ipv4.conf.eth0/1.forwarding": {"net/ipv4/conf/eth0.1/forwarding", Network},
		"net/ipv4/conf/eth0.1/forwarding": {"net/ipv4/conf/eth0.1/forwarding", Network},
		"kernel.sem":                      {"kernel/sem", IPC},
		"kernel/shmmax":                   {"kernel/shmmax", IPC},
		"kernel.msg_next_id":              {"kernel/msg_next_id", IPC},
		"fs.mqueue.msg_max":               {"fs/mqueue/msg_max", IPC},
		"kernel.domainname":               {"kernel/domainname", UTS},
		"kernel/domainname":               {"kernel/domainname", UTS},
	} {
		key, ns, err := Parse(name)
		if err != nil || key != want.key || ns != want.ns {
			t.Errorf("%s: %s, %s, %v", name, key, ns, err)
		}
		if again := Key(Name(key)); again != key {
			t.Errorf("%s: the name of %s is that of %s", name, key, again)
		}
	}
	for _, name := range []string{
		"", ".", "/", "net", "net.", "net/", "netx.y", "/net/ipv4/ip_forward", "net/../kernel/panic", "net.//.kernel.panic",
		"net.ipv4.../../kernel/panic",
		"kernel.hostname", "kernel.panic", "kernel.shmmax.x", "kernel.shm", "fs.mqueue", "fs.file-max", "vm.swappiness",
		"user.max_user_namespaces",
		"net.ipv4.a\nb", "net.\x00",
	} {
		if key, ns, err := Parse(name); fault.Of(err) != fault.Invalid {
			t.Errorf("%q is %s of the %s namespace (%v)", name, key, ns, err)
		}
	}
}

// What is written for all interfaces would undo what was written for one.
func TestKeysOfInterfacesComeLast(t *testing.T) {
	v := Values{
		"net/ipv4/conf/eth0/forwarding":    "0",
		"net/ipv4/conf/default/forwarding": "0",
		"net/ipv4/conf/all/forwarding":     "1",
		"net/ipv4/neigh/eth0/gc_stale":     "1",
		"net/ipv4/ip_forward":              "1",
		"kernel/sem":                       "1",
	}
	want := []string{
		"kernel/sem", "net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv4/conf/default/forwarding",
		"net/ipv4/conf/eth0/forwarding", "net/ipv4/neigh/eth0/gc_stale",
	}
	if got := v.Keys(); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if ipc := v.Of(IPC); len(ipc) != 1 || ipc["kernel/sem"] != "1" {
		t.Errorf("of the IPC namespace: %q", ipc)
	}
}

func TestWriteTellsWhatIsMissingAndWhatIsRefused(t *testing.T) {
	missing, err := Values{"net/ipv4/no_such_thing": "1", "net/ipv4/conf/no_such_link/forwarding": "1"}.Write()
	if err != nil || len(missing) != 2 {
		t.Errorf("%q, %v", missing, err)
	}
	if err := Missing(missing); fault.Of(err) != fault.Invalid ||
		!strings.Contains(err.Error(), "net.ipv4.no_such_thing") {
		t.Errorf("%v", err)
	}
	if err := Missing(nil); err != nil {
		t.Error(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIP: not root")
	}
	_, err = Values{"net/ipv4/ip_local_port_range": "no numbers"}.Write()
	if fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "net.ipv4.ip_local_port_range") {
		t.Errorf("%v", err)
	}
}

// FuzzParse: what is accepted stays in the directories of the namespaces, and has one key.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"net.ipv4.ip_forward", "net/../x", "net.//.x", "fs.mqueue.x", "kernel.sem", "./net.x",
		"net.\x00", "kernel/domainname"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		key, _, err := Parse(name)
		if err != nil {
			return
		}
		path := filepath.Join(Root, key)
		if !strings.HasPrefix(path, Root+"/net/") && !strings.HasPrefix(path, Root+"/fs/mqueue/") &&
			filepath.Dir(path) != Root+"/kernel" {
			t.Errorf("%q leads to %s", name, path)
		}
		if again, _, err := Parse(Name(key)); err != nil || again != key {
			t.Errorf("%q: %s is also %s (%v)", name, key, again, err)
		}
	})
}
