package creation

import (
	"cmp"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules, a separate package of the cgroup library
	devices "github.com/opencontainers/cgroups/devices/config"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/cgroup"
)

// Limit sets all limits of a new cgroup.
func Limit(m cgroups.Manager, r *cgroups.Resources) error {
	done, err := allowDevices(m, r)
	if err != nil {
		return err
	}
	if done {
		others := *r
		others.SkipDevices = true
		r = &others
	}
	return m.Set(r)
}

// allowDevices writes the device rules of a new v1 cgroup and reports whether it did. It supports
// only the rules of kubelets: a list of allowed devices, and all others denied. It leaves
// everything else to the cgroup library, also a list that does not read back as written. The
// library opens devices.allow again for each of a dozen rules, and reads the list before and after
// them.
func allowDevices(m cgroups.Manager, r *cgroups.Resources) (bool, error) {
	dir := m.Path("devices")
	if cgroup.Unified() || dir == "" || r.SkipDevices {
		return false, nil
	}
	wanted, ok := allowList(r.Devices)
	if !ok {
		return false, nil
	}
	if err := cgroups.WriteFile(dir, "devices.deny", "a *:* rwm"); err != nil {
		return false, err
	}
	allow, err := cgroups.OpenFile(dir, "devices.allow", unix.O_WRONLY)
	if err != nil {
		return false, err
	}
	defer allow.Close()
	for _, rule := range wanted {
		if _, err := allow.WriteString(rule); err != nil {
			return false, nil // for example, the parent denies it: the library returns the reason
		}
	}
	have, err := cgroups.ReadFile(dir, "devices.list")
	if err != nil {
		return false, err
	}
	return slices.Equal(slices.Sorted(strings.Lines(have)), slices.Sorted(strings.Lines(strings.Join(wanted, "\n")+"\n"))),
		nil
}

// allowList returns the rules for devices.allow, one for each device; false if the rules are not a
// list of allowed devices.
func allowList(rules []*devices.Rule) (list []string, ok bool) {
	if len(rules) < 2 || rules[0].Allow || rules[0].Type != devices.WildcardDevice || rules[0].Major != devices.Wildcard ||
		rules[0].Minor != devices.Wildcard {
		return nil, false
	}
	merged := make(map[devices.Rule]devices.Permissions)
	for _, r := range rules[1:] {
		if !r.Allow || r.Type != devices.CharDevice && r.Type != devices.BlockDevice || r.Permissions.IsEmpty() ||
			!r.Permissions.IsValid() {
			return nil, false
		}
		key := devices.Rule{Type: r.Type, Major: r.Major, Minor: r.Minor}
		merged[key] = merged[key].Union(r.Permissions)
	}
	all := make([]devices.Rule, 0, len(merged))
	for r, permissions := range merged {
		r.Permissions = permissions
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b devices.Rule) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Major, b.Major), cmp.Compare(a.Minor, b.Minor))
	})
	for _, r := range all {
		list = append(list, r.CgroupString())
	}
	return list, true
}
