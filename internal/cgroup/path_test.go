package cgroup

import (
	"regexp"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		configured string
		systemd    bool
		want       Driver
		kind       fault.Kind
	}{
		{"", false, Cgroupfs, ""},
		{"auto", false, Cgroupfs, ""},
		{"auto", true, Systemd, ""},
		{"cgroupfs", true, Cgroupfs, ""},
		{"systemd", true, Systemd, ""},
		{"systemd", false, "", fault.Precondition},
		{"runc", true, "", fault.Invalid},
	} {
		got, err := Choose(c.configured, c.systemd)
		if got != c.want || fault.Of(err) != c.kind {
			t.Errorf("%q, systemd %v: %q, %v", c.configured, c.systemd, got, err)
		}
	}
}

func TestParentPathDir(t *testing.T) {
	const uid = "0123-45"
	for _, c := range []struct {
		driver       Driver
		asked        string
		parent       string
		own          bool
		path         string // of the container "c"
		dir          string // of its cgroup
		invalidSlice bool
	}{
		{Cgroupfs, "", "/kuri-p", true, "/kuri-p/c", "/kuri-p/c", false},
		{Cgroupfs, "/kubepods/burstable/pod0123-45", "/kubepods/burstable/pod0123-45", true,
			"/kubepods/burstable/pod0123-45/c", "/kubepods/burstable/pod0123-45/c", false},
		{Cgroupfs, "batch//low/", "/batch/low", false, "/batch/low/c", "/batch/low/c", false},
		{Cgroupfs, "/", "/", false, "/c", "/c", false},
		{Cgroupfs, "/k.slice/k-pod0123_45.slice", "/k.slice/k-pod0123_45.slice", true, "/k.slice/k-pod0123_45.slice/c",
			"/k.slice/k-pod0123_45.slice/c", false},
		{Cgroupfs, "/a/../../etc", "", false, "", "", true},
		{Cgroupfs, "/a\x00", "", false, "", "", true},
		{Cgroupfs, "/a/" + strings.Repeat("x", 256), "", false, "", "", true},

		{Systemd, "", "kuri_p.slice", true, "kuri_p.slice:kuri:c", "/kuri_p.slice/kuri-c.scope", false},
		{
			Systemd, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0123_45.slice",
			"kubepods-burstable-pod0123_45.slice", true,
			"kubepods-burstable-pod0123_45.slice:kuri:c",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0123_45.slice/kuri-c.scope", false,
		},
		{Systemd, "kubepods-pod0123_45.slice", "kubepods-pod0123_45.slice", true, "kubepods-pod0123_45.slice:kuri:c",
			"/kubepods.slice/kubepods-pod0123_45.slice/kuri-c.scope", false},
		{Systemd, "/batch/low-prio", "batch-low_prio.slice", false, "batch-low_prio.slice:kuri:c",
			"/batch.slice/batch-low_prio.slice/kuri-c.scope", false},
		{Systemd, "/", "-.slice", false, "-.slice:kuri:c", "/kuri-c.scope", false},
		{Systemd, "a--b.slice", "", false, "", "", true},
		{Systemd, "-a.slice", "", false, "", "", true},
		{Systemd, "a:b.slice", "", false, "", "", true},
		{Systemd, "/" + strings.Repeat("x", 300), "", false, "", "", true},
	} {
		parent, own, err := c.driver.Parent(c.asked, "p", uid)
		if c.invalidSlice {
			if fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "cgroup") {
				t.Errorf("%s %q: %q, %v", c.driver, c.asked, parent, err)
			}
			continue
		}
		if err != nil || parent != c.parent || own != c.own {
			t.Errorf("%s %q: parent %q, own %v, %v", c.driver, c.asked, parent, own, err)
			continue
		}
		if p := c.driver.Path(parent, "kuri", "c"); p != c.path {
			t.Errorf("%s %q: path %q", c.driver, c.asked, p)
		}
		if d, err := c.driver.Dir(c.path); err != nil || d != c.dir {
			t.Errorf("%s %q: dir %q, %v", c.driver, c.path, d, err)
		}
	}
	if d, err := Systemd.Dir("kuri-p.slice"); err != nil || d != "/kuri.slice/kuri-p.slice" {
		t.Errorf("the directory of a parent: %q, %v", d, err)
	}
	for _, bad := range []string{"a", "a.slice:b", "a.slice:b:", "a.slice:b:c/d", "/a.slice:b:c"} {
		if d, err := Systemd.Dir(bad); fault.Of(err) != fault.Invalid {
			t.Errorf("%q: %q, %v", bad, d, err)
		}
	}
	for _, bad := range []string{"", "a", "/a/../b"} {
		if d, err := Cgroupfs.Dir(bad); fault.Of(err) != fault.Invalid {
			t.Errorf("%q: %q, %v", bad, d, err)
		}
	}
}

// Agents find a container's id, 64 hexadecimal digits at the end of a cgroup's path, by these
// prefixes and suffixes. They are those of Falco's libraries for CRI runtimes.
func TestAgentsFindTheID(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	known := regexp.MustCompile(`(/|/crio-|:cri-containerd:)[0-9a-f]{64}$|(/cri-containerd-|/crio-)[0-9a-f]{64}\.scope$`)
	for _, c := range []struct {
		driver Driver
		prefix string
		known  bool
	}{
		{Cgroupfs, "cri-containerd", true}, {Cgroupfs, "own", true},
		{Systemd, "cri-containerd", true}, {Systemd, "crio", true}, {Systemd, "own", false},
	} {
		for _, parent := range []string{"", "/kubepods/burstable/pod0123-45", "/kubepods.slice/kubepods-pod0123_45.slice"} {
			parent, _, err := c.driver.Parent(parent, "p", "0123-45")
			if err != nil {
				t.Fatal(err)
			}
			dir, err := c.driver.Dir(c.driver.Path(parent, c.prefix, id))
			if err != nil || known.MatchString(dir) != c.known || !strings.Contains(dir, id) {
				t.Errorf("%s, prefix %s: %s, %v", c.driver, c.prefix, dir, err)
			}
		}
	}
}

func FuzzParent(f *testing.F) {
	f.Add("/kubepods/burstable/podx", "x")
	f.Add("a-b.slice", "")
	f.Fuzz(func(t *testing.T, parent, uid string) {
		for _, d := range []Driver{Cgroupfs, Systemd} {
			p, _, err := d.Parent(parent, "p", uid)
			if err != nil {
				continue
			}
			dir, err := d.Dir(d.Path(p, "kuri", "c"))
			if err != nil || !strings.HasPrefix(dir, "/") || strings.Contains(dir+"/", "/../") {
				t.Fatalf("%s: %q became %q in %q, %v", d, parent, p, dir, err)
			}
		}
	})
}
