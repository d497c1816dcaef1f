package networktest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
)

func Attach(t testing.TB, n network.Network, pod network.Pod) *network.Result {
	t.Helper()
	r, err := n.Attach(t.Context(), pod)
	Must(t, err)
	return r
}

// Wants fails unless err is of the kind and says all that is in parts.
func Wants(t testing.TB, err error, kind fault.Kind, parts ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error %v: want kind %q", err, string(kind))
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
}

// Plugin writes a CNI plugin of the test's own: a shell script, with the verb in $CNI_COMMAND and $log to write to. It
// returns what reads the log.
func Plugin(t *testing.T, bin, name, script string) (log func() string) {
	t.Helper()
	if _, err := os.Stat("/bin/sh"); err != nil {
		t.Skip("SKIP: no /bin/sh for the test's own CNI plugins")
	}
	path := filepath.Join(t.TempDir(), "log")
	Must(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\nlog="+path+"\necho \"$CNI_COMMAND\" >>$log\n"+
		script), 0o755))
	return func() string {
		body, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(body))
	}
}

// Answer is what a plugin prints when it is content.
const Answer = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","mac":"0a:00:00:00:00:01","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.7.0.2/24","gateway":"10.7.0.1","interface":0}]}`

func Write(t *testing.T, dir, name, body string) {
	t.Helper()
	Must(t, os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600))
}

// Eventually waits for what happens in the background.
func Eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for began := time.Now(); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > 15*time.Second {
			t.Fatalf("not within 15 s: %s", what)
		}
	}
}

// EmptyTables are those that the reference plugins make and leave; nat and filter are iptables', which they look into
// where it is installed.
var EmptyTables = []string{
	"table 2 cni_plugins_masquerade", "table 1 cni_plugins_masquerade", "table 2 cni_hostport", "table 10 cni_hostport",
	"table 2 nat", "table 10 nat", "table 2 filter", "table 10 filter",
}
