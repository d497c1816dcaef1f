package keeper

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// cgroupName is the name of the keeper's own cgroup: kuri-keeper, with a hash of the state directory when that is not
// the usual one, so that keepers side by side do not share one.
func cgroupName(stateDir string) string {
	if stateDir == "/run/kuri" {
		return "kuri-keeper"
	}
	sum := sha256.Sum256([]byte(stateDir))
	return "kuri-keeper-" + hex.EncodeToString(sum[:4])
}

// makeCgroups makes a cgroup for the holder and the keeper in each hierarchy, so that what ends or limits kurid does not
// reach them. The holder enters them itself, and removes them when it ends. One that a killed holder has left is as good as
// new.
func makeCgroups(stateDir string) ([]string, error) {
	mounts, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, m := range mounts {
		dir := filepath.Join(m.path, cgroupName(stateDir))
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		if m.cpuset {
			if err := copyCpuset(m.path, dir); err != nil {
				return nil, err
			}
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

type cgroupMount struct {
	path   string
	cpuset bool // a v1 hierarchy with the cpuset controller, whose new cgroups have no CPUs
}

// cgroupMounts lists where the hierarchies are mounted, each once: v1, v2 or both.
func cgroupMounts() ([]cgroupMount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var mounts []cgroupMount
	seen := make(map[string]bool)
	for s := bufio.NewScanner(f); s.Scan(); {
		// 36 35 98:0 /root /mountpoint options optional… - fstype source superoptions, see proc_pid_mountinfo(5)
		left, right, ok := strings.Cut(s.Text(), " - ")
		fields, fs := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 6 || len(fs) < 3 || (fs[0] != "cgroup" && fs[0] != "cgroup2") || fields[3] != "/" || seen[fields[2]] {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fields[4], &st) != nil || fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)) != fields[2] {
			continue // hidden under another mount
		}
		seen[fields[2]] = true
		v1cpuset := fs[0] == "cgroup" && strings.Contains(","+fs[2]+",", ",cpuset,")
		mounts = append(mounts, cgroupMount{path: fields[4], cpuset: v1cpuset})
	}
	if len(mounts) == 0 {
		return nil, errors.New("no cgroup hierarchy is mounted on this machine")
	}
	return mounts, nil
}

func copyCpuset(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		have, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), have, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// joinCgroups moves a process into the cgroups of another one. Hierarchies that are not mounted where they usually are do not
// count.
func joinCgroups(pid, other int) error {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", other))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(body)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // ID:controllers:path, see cgroups(7)
		if len(fields) < 3 {
			continue
		}
		root := filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(fields[1], "name="))
		if fields[1] == "" && exists("/sys/fs/cgroup/unified") {
			root = "/sys/fs/cgroup/unified"
		}
		err := os.WriteFile(filepath.Join(root, fields[2], "cgroup.procs"), []byte(fmt.Sprint(pid)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("move process %d to where process %d is: %w", pid, other, err)
		}
	}
	return nil
}

func startScope(ctx context.Context, name string, pid int) error {
	conn, err := systemd.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer conn.Close()
	// A scope of a killed keeper may be there in state failed.
	_ = conn.ResetFailedUnitContext(ctx, name)
	done := make(chan string, 1)
	_, err = conn.StartTransientUnitContext(ctx, name, "fail", []systemd.Property{
		systemd.PropDescription("Kuri's keeper: the parent of its containers"),
		{Name: "PIDs", Value: dbus.MakeVariant([]uint32{uint32(pid)})},
		{Name: "DefaultDependencies", Value: dbus.MakeVariant(false)},
	}, done)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("start %s: systemd says %q", name, result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
