package dist

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kuri-cri/kuri/test/harness"
)

// A removal and a purge end the keeper, the fork server and the holder of a node without pods. While
// a pod runs they continue, and so does the pod, which an installation afterwards finds. The package
// is installed in a cell, on an overlay over this machine's files.
func TestRemoval(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	cell := filepath.Join(harness.Repository(), "bench", "cell")
	if text, err := exec.Command(cell, "true").CombinedOutput(); err != nil {
		t.Skipf("SKIP: no cell can be created: %v\n%s", err, text)
	}
	work, err := os.MkdirTemp("/var/tmp", "kuri-removal")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(work) })
	ref, err := name.NewTag("example.com/busybox:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(filepath.Join(work, "busybox.tar"), ref, harness.Busybox(t)); err != nil {
		t.Fatal(err)
	}
	output(t, "cp", deb(t), filepath.Join(work, "kuri.deb"))
	if err := os.WriteFile(filepath.Join(work, "story"), []byte(removal), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, cell, "bash", filepath.Join(work, "story"), work)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it cleans up
	cmd.WaitDelay = 20 * time.Second
	text, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(text), "\ndone\n") {
		t.Errorf("%v\n%s", err, text)
	}
}

const removal = `
set -euo pipefail
work=$1
export DEBIAN_FRONTEND=noninteractive

# The root becomes an overlay, and no mount of the old one stays.
mount --make-rprivate /
mkdir "$work"/{disk,root}
mount -t tmpfs tmpfs "$work/disk"
mkdir "$work"/disk/{upper,work}
mount -t overlay -o "lowerdir=/,upperdir=$work/disk/upper,workdir=$work/disk/work" overlay "$work/root"
rm -rf "$work"/root/etc/kuri "$work"/root/var/lib/kuri "$work"/root/var/lib/kuri-run
for dir in proc sys dev run; do mount --rbind "/$dir" "$work/root/$dir"; done
for dir in tmp var/lib/kuri var/log; do
	mkdir -p "$work/root/$dir"
	mount -t tmpfs tmpfs "$work/root/$dir"
done
cp "$work"/{kuri.deb,busybox.tar} "$work/root/tmp/"
cd "$work/root"
pivot_root . mnt
cd /
umount -l /mnt
mount --make-rshared /

fail() {
	echo "FAIL: $*"
	ps -eo pid,ppid,stat,args
	exit 1
}
package() {
	echo "dpkg $*"
	timeout 60 dpkg --force-unsafe-io --no-triggers "$@" </dev/null 2>&1
}
serve() {
	kurid </dev/null >>/tmp/kurid.log 2>&1 &
	kurid=$!
	local tries
	for ((tries = 0; tries < 300; tries++)); do
		if kuri version >/dev/null 2>&1; then return; fi
		sleep 0.1
	done
	fail "kurid does not serve: $(cat /tmp/kurid.log)"
}
stop() {
	kill "$kurid"
	wait "$kurid" || fail "kurid exits with status $?: $(cat /tmp/kurid.log)"
}
ours() { grep -hx 'kuri.*' /proc/[0-9]*/comm 2>/dev/null | sort | paste -sd' '; }
nothing() {
	local tries
	for ((tries = 0; tries < 50; tries++)); do
		if [ -z "$(ours)" ]; then return; fi
		sleep 0.1 # the fork server notices that the keeper has exited
	done
	fail "$* leaves $(ours)"
}
mounts() { findmnt -rno TARGET | sort; }
# The holder cannot leave and remove its own cgroup here, below the root of a cgroup namespace.
cgroups() { find /sys/fs/cgroup -type d ! -name kuri-keeper | sort; }
mounts=$(mounts)
cgroups=$(cgroups)

echo "= a pod has come and gone"
package --install /tmp/kuri.deb
serve
kuri load /tmp/busybox.tar
[ "$(kuri run --rm example.com/busybox:1 echo hello)" = hello ] || fail "the pod does not run"
stop
[ "$(ours)" = "kuri-forkserver kuri-holder kuri-keeper" ] || fail "before the removal there are $(ours)"
said=$(package --remove kuri)
[[ $said != *"pods go on"* ]] || fail "without pods, the removal says: $said"
nothing "the removal"
[ -e /etc/kuri/config.toml ] || fail "the removal takes the configuration away"
[ "$(mounts)" = "$mounts" ] || fail "the removal leaves mounts: $(mounts)"
[ "$(cgroups)" = "$cgroups" ] || fail "the removal leaves cgroups: $(cgroups)"

echo "= a pod runs, without a network namespace"
package --install /tmp/kuri.deb
serve
kuri run --name stays --network host example.com/busybox:1 sleep 100000
pod=$(pgrep -x -f 'sleep 100000')
stop
said=$(package --remove kuri)
[[ $said == *"pods go on"* ]] || fail "with a pod, the removal says: $said"
said=$(package --purge kuri)
[[ $said == *"pods still run, so their files stay"* ]] || fail "with a pod, the purge says: $said"
[ "$(pgrep -x -f 'sleep 100000')" = "$pod" ] || fail "the purge ends the pod"
[ "$(ours)" = "kuri-forkserver kuri-holder kuri-keeper" ] || fail "with a pod, the purge leaves $(ours)"

echo "= installed again"
package --install /tmp/kuri.deb
serve
kuri exec stays true || fail "the pod is not found: $(kuri ps) $(cat /tmp/kurid.log)"
[ "$(pgrep -x -f 'sleep 100000')" = "$pod" ] || fail "another pod was started"
kuri rm --force stays
stop
package --purge kuri
nothing "the purge"
# A mount point stays.
[ ! -e /run/kuri ] && [ ! -e /etc/kuri ] && [ -z "$(ls -A /var/lib/kuri)" ] || fail "the purge leaves $(ls -A /run/kuri /etc/kuri /var/lib/kuri 2>&1)"
[ "$(mounts)" = "$mounts" ] || fail "the purge leaves mounts: $(mounts)"
[ "$(cgroups)" = "$cgroups" ] || fail "the purge leaves cgroups: $(cgroups)"
echo done
`
