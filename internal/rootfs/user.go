package rootfs

import (
	"errors"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// User returns the user of a container's first process: from the security context (nil requests
// nothing), otherwise imageUser (the image config's "user[:group]"), otherwise root. A username is
// taken in the same form, as in containerd and CRI-O. Names are looked up in the image's etc/passwd
// and etc/group; a number need not be listed there. lowerdirs
// are the image's layers, topmost first.
//
// The group is the requested one, otherwise the user's group in etc/passwd, otherwise 0. The
// additional groups are the group itself, the requested ones and, with the policy Merge, those in
// etc/group that list the user as a member.
//
// The error is of kind Invalid. If a name is not found, it names the file of the image.
func User(lowerdirs []string, sc *runtime.LinuxContainerSecurityContext, imageUser string) (spec.ResolvedUser, error) {
	w, err := requestedUser(sc, imageUser)
	if err != nil {
		return spec.ResolvedUser{}, err
	}
	files := stack(lowerdirs)
	users, err := files.passwd()
	if err != nil {
		return spec.ResolvedUser{}, err
	}
	groups, err := files.group()
	if err != nil {
		return spec.ResolvedUser{}, err
	}
	return w.resolve(users, groups)
}

// userRequest is the requested user and group, each as a number or a name.
type userRequest struct {
	field, user        string
	byName             bool // user is a name if there is such a user, even if it looks like a number
	groupField, group  string
	strict             bool
	supplementalGroups []int64
}

func requestedUser(sc *runtime.LinuxContainerSecurityContext, imageUser string) (userRequest, error) {
	const f = "linux.security_context."
	w := userRequest{supplementalGroups: sc.GetSupplementalGroups()}
	switch sc.GetSupplementalGroupsPolicy() {
	case runtime.SupplementalGroupsPolicy_Merge:
	case runtime.SupplementalGroupsPolicy_Strict:
		w.strict = true
	default:
		return w, fault.New(fault.Invalid, "%ssupplemental_groups_policy: unknown policy %d", f,
			sc.GetSupplementalGroupsPolicy())
	}
	name, uid, gid := sc.GetRunAsUsername(), sc.GetRunAsUser(), sc.GetRunAsGroup()
	switch {
	case name != "" && uid != nil:
		return w, fault.New(fault.Invalid, "%srun_as_username: it is set together with run_as_user", f)
	case gid != nil && name == "" && uid == nil:
		return w, fault.New(fault.Invalid, "%srun_as_group: it is set without run_as_user or run_as_username", f)
	case name != "":
		w.field, w.groupField, w.byName = f+"run_as_username", f+"run_as_username", true
		w.user = name
		if user, group, ok := strings.Cut(name, ":"); ok && user != "" { // as in other runtimes
			w.user, w.group = user, group
		}
	case uid != nil:
		w.field, w.user = f+"run_as_user", strconv.FormatInt(uid.GetValue(), 10)
	default:
		w.field, w.groupField = "the image's user", "the image's group"
		w.user, w.group, _ = strings.Cut(imageUser, ":")
	}
	if gid != nil {
		w.groupField, w.group = f+"run_as_group", strconv.FormatInt(gid.GetValue(), 10)
	}
	return w, nil
}

func (w userRequest) resolve(users []user, groups []group) (spec.ResolvedUser, error) {
	var out spec.ResolvedUser
	entry, err := w.findUser(users)
	if err != nil {
		return out, err
	}
	out.UID, out.GID = entry.uid, entry.gid
	if w.group != "" {
		if out.GID, err = w.findGroup(groups); err != nil {
			return out, err
		}
	}
	out.AdditionalGIDs = []uint32{out.GID}
	for _, g := range w.supplementalGroups {
		gid, ok := id(strconv.FormatInt(g, 10))
		if !ok {
			return out, fault.New(fault.Invalid, "linux.security_context.supplemental_groups: %d is not a group id", g)
		}
		out.AdditionalGIDs = append(out.AdditionalGIDs, gid)
	}
	if !w.strict && entry.name != "" {
		for _, g := range groups {
			if slices.Contains(g.members, entry.name) {
				out.AdditionalGIDs = append(out.AdditionalGIDs, g.gid)
			}
		}
	}
	slices.Sort(out.AdditionalGIDs)
	out.AdditionalGIDs = slices.Compact(out.AdditionalGIDs)
	if n := len(out.AdditionalGIDs); n > maxGroups {
		return out, fault.New(fault.Invalid,
			"linux.security_context.supplemental_groups: %d groups are more than the %d that Linux allows", n,
			maxGroups)
	}
	return out, nil
}

// findUser returns the entry of the user, or a new one for a number that is not in etc/passwd.
func (w userRequest) findUser(users []user) (user, error) {
	name := w.user
	if name == "" {
		name = "0"
	}
	uid, isID := id(name)
	if w.byName || !number(name) {
		for _, u := range users {
			if u.name == name {
				return u, nil
			}
		}
	}
	if isID {
		for _, u := range users {
			if u.uid == uid {
				return u, nil
			}
		}
		return user{uid: uid}, nil
	}
	if number(name) {
		return user{}, fault.New(fault.Invalid, "%s: %s is not a user id", w.field, name)
	}
	return user{}, fault.New(fault.Invalid,
		"%s: no user %q in /etc/passwd of the image; name one that is there, or give its number", w.field, name)
}

func (w userRequest) findGroup(groups []group) (uint32, error) {
	if gid, ok := id(w.group); ok {
		return gid, nil
	}
	if number(w.group) {
		return 0, fault.New(fault.Invalid, "%s: %s is not a group id", w.groupField, w.group)
	}
	for _, g := range groups {
		if g.name == w.group {
			return g.gid, nil
		}
	}
	return 0, fault.New(fault.Invalid,
		"%s: no group %q in /etc/group of the image; name one that is there, or give its number", w.groupField, w.group)
}

// user is a line of etc/passwd; group is a line of etc/group.
type user struct {
	name     string
	uid, gid uint32
}

type group struct {
	name    string
	gid     uint32
	members []string
}

// passwd reads etc/passwd. An image without it has no users. Malformed lines are skipped, as the C
// library does.
func (s stack) passwd() ([]user, error) {
	var out []user
	err := s.lines("etc/passwd", func(fields []string) {
		if len(fields) < 4 {
			return
		}
		uid, ok1 := id(fields[2])
		gid, ok2 := id(fields[3])
		if ok1 && ok2 {
			out = append(out, user{name: fields[0], uid: uid, gid: gid})
		}
	})
	return out, err
}

func (s stack) group() ([]group, error) {
	var out []group
	err := s.lines("etc/group", func(fields []string) {
		if len(fields) < 3 {
			return
		}
		if gid, ok := id(fields[2]); ok {
			g := group{name: fields[0], gid: gid}
			if len(fields) > 3 {
				g.members = strings.Split(fields[3], ",")
			}
			out = append(out, g)
		}
	})
	return out, err
}

func (s stack) lines(name string, each func(fields []string)) error {
	body, err := s.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		if fields := strings.Split(line, ":"); line != "" && line[0] != '#' && fields[0] != "" {
			each(fields)
		}
	}
	return nil
}

// id parses a user or group id. The highest number is not an id: it means "unchanged" to the
// kernel.
func id(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != math.MaxUint32
}

func number(s string) bool {
	return s != "" && strings.Trim(strings.TrimPrefix(s, "-"), "0123456789") == ""
}
