package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountOptions(t *testing.T) {
	const v1 = "30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
	const v2 = "30 25 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,seclabel,nsdelegate,memory_recursiveprot\n"
	for body, want := range map[string]string{"": "", v1: "", v2: "nsdelegate memory_recursiveprot", "junk\n - \n" +
		v2: "nsdelegate memory_recursiveprot"} {
		file := filepath.Join(t.TempDir(), "mountinfo")
		if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(mountOptions(file), " "); got != want {
			t.Errorf("%q: %q, want %q", body, got, want)
		}
	}
	if got := mountOptions("/no/such/file"); got != nil {
		t.Errorf("%q", got)
	}
}

// A hierarchy is found after a line that is longer than the buffer of a bufio.Scanner.
func TestMountedAfterALongLine(t *testing.T) {
	dir := t.TempDir()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	overlay := "40 25 0:99 / /merged rw - overlay overlay rw,lowerdir=" + strings.Repeat("/layer:", 20<<10) + "/last\n"
	cgroup := fmt.Sprintf("41 25 %d:%d / %s rw - cgroup cgroup rw,cpuset\n", unix.Major(st.Dev), unix.Minor(st.Dev), dir)
	file := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(file, []byte(overlay+cgroup), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := mountedIn(file); err != nil || !slices.Equal(got, []hierarchy{{dir, true}}) {
		t.Errorf("%v, %v, want %s with cpuset", got, err, dir)
	}
}

func TestMemberships(t *testing.T) {
	h, err := Open()
	if err != nil || os.Geteuid() != 0 {
		t.Skip("SKIP: cgroups cannot be made here")
	}
	name := "kuri-own-test-" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() {
		if err := h.Remove("/" + name); err != nil {
			t.Error(err)
		}
	})
	for range 2 {
		dirs, err := MakeEverywhere(name)
		if err != nil {
			t.Skipf("SKIP: cgroups cannot be made here: %v", err)
		}
		if len(dirs) < len(h.Main()) {
			t.Errorf("made in %v, limited in %v", dirs, h.Main())
		}
	}
	first, second := exec.Command("sleep", "1000"), exec.Command("sleep", "1000")
	for _, cmd := range []*exec.Cmd{first, second} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	for _, root := range h.Main() {
		if err := move(first.Process.Pid, filepath.Join(root, name)); err != nil {
			t.Skipf("SKIP: processes cannot be moved here: %v", err)
		}
	}
	if pids := ProcsEverywhere("none", name); !slices.Equal(pids, []int{first.Process.Pid}) {
		t.Errorf("processes %v, want %d", pids, first.Process.Pid)
	}
	if lines := Memberships(second.Process.Pid, "/"+name); len(lines) > 0 {
		t.Errorf("of a process that is not in it: %q", lines)
	}
	if err := Join(second.Process.Pid, first.Process.Pid); err != nil {
		t.Fatal(err)
	}
	one, other := Memberships(first.Process.Pid, "/"+name), Memberships(second.Process.Pid, "/"+name)
	if len(one) == 0 || !slices.Equal(one, other) {
		t.Errorf("of the one %q, of the one that joined it %q", one, other)
	}
	if lines := Memberships(first.Process.Pid, "/"+name+"x"); len(lines) > 0 {
		t.Errorf("of another name: %q", lines)
	}
}

// A process enters the hierarchy of the CPU controller last, and is created in that of v2.
func TestEntries(t *testing.T) {
	for name, c := range map[string]struct {
		paths       map[string]string
		all, before []string
		last, birth string
	}{
		"v2": {map[string]string{"": "/u"}, nil, nil, "", "/u"},
		"v1": {map[string]string{"cpu": "/c", "cpuacct": "/c", "freezer": "/f", "pids": "/p", "rdma": ""},
			[]string{"/c/tasks", "/p/tasks"}, []string{"/f/tasks", "/p/tasks"}, "/c/tasks", ""},
		"hybrid": {map[string]string{"": "/u", "freezer": "/f", "memory": "/m"}, []string{"/m/tasks"},
			[]string{"/f/tasks", "/m/tasks"}, "", "/u"},
		"no group": {nil, nil, nil, "", ""},
	} {
		g := Of(c.paths)
		if got := Entries(c.paths, g.Dir()); !slices.Equal(got, c.all) {
			t.Errorf("%s: %v, want %v", name, got, c.all)
		}
		before, last := EntriesCPULast(c.paths)
		if !slices.Equal(before, c.before) || last != c.last {
			t.Errorf("%s: first %v, last %q, want %v and %q", name, before, last, c.before, c.last)
		}
		if got := g.Birth(c.paths); got != c.birth {
			t.Errorf("%s: born in %q, want %q", name, got, c.birth)
		}
	}
}
