package dist

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/test/harness"
)

// systemd restarts a kurid that is killed, or cannot start, more often than its default limit of
// starts allows. The unit runs below a user's systemd in a cell, without the settings that only the
// system's systemd can apply.
func TestUnitComesBack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	const systemd = "/lib/systemd/systemd"
	if _, err := os.Stat(systemd); err != nil {
		t.Skipf("SKIP: %v", err)
	}
	cell := filepath.Join(harness.Repository(), "bench", "cell")
	if text, err := exec.Command(cell, "true").CombinedOutput(); err != nil {
		t.Skipf("SKIP: no cell can be created: %v\n%s", err, text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, cell, "bash", "-c", restarts, systemd, harness.Repository())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it cleans up
	cmd.WaitDelay = 20 * time.Second
	text, err := cmd.CombinedOutput()
	switch {
	case strings.HasPrefix(string(text), "SKIP"):
		t.Skipf("%s", text)
	case err != nil || !strings.HasSuffix(string(text), "\ndone\n"):
		t.Errorf("%v\n%s", err, text)
	}
}

const restarts = `
set -euo pipefail
systemd=$0 repository=$1
export XDG_RUNTIME_DIR=/run/user HOME=$CELL_DIR
units=$CELL_DIR/.config/systemd/user
config=$CELL_DIR/config.toml
mkdir -p "$units" /run/user /run/systemd/system # the last one says that systemd runs
touch "$config"
sed -e "s|@PREFIX@/bin/kurid|$repository/bin/kurid --root $CELL_DIR/root --cgroup-driver cgroupfs --config $config|" \
	-e '/^Limit\|^OOMScore\|^TasksMax\|^Delegate\|^After\|^Wants/d' "$repository/packaging/kurid.service" >"$units/kurid.service"

unit() { systemctl --user "$@"; }
of() { unit show --value --property "$1" kurid.service; }
fail() {
	echo "FAIL: $*"
	unit status kurid.service || true
	cat "$CELL_DIR/log"
	exit 1
}
# await calls a function until it succeeds, for at most half a minute.
await() {
	local tries
	for ((tries = 0; tries < 300; tries++)); do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.1
	done
	return 1
}
"$systemd" --user >"$CELL_DIR/log" 2>&1 &
await unit show --property Version || { echo "SKIP: systemd --user does not run: $(cat "$CELL_DIR/log")"; exit; }
rmdir /run/systemd/system

unit start kurid.service
echo "= killed"
another() {
	now=$(of MainPID)
	[ "$now" -gt 0 ] && [ "$now" != "$was" ] && "$repository/bin/kuri" version
}
for i in 1 2 3 4 5 6 7; do
	was=$(of MainPID)
	kill -KILL "$was"
	await another || fail "killed $i times, kurid does not come back"
done

echo "= a wrong configuration"
echo 'listen = 1' >"$config"
before=$(of NRestarts)
often() { [ "$(of NRestarts)" -ge $((before + 8)) ]; }
kill -KILL "$now"
await often || fail "kurid is started $(($(of NRestarts) - before)) times with a wrong configuration"
: >"$config"
await "$repository/bin/kuri" version || fail "with a right configuration kurid does not come back"
unit stop kurid.service
echo done
`
