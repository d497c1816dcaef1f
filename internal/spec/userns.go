package spec

import (
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// userns returns the pod's user namespace options; mode NODE if it requests none.
func (t *translation) userns() *runtime.UserNamespace {
	return UserNamespace(t.in.Pod)
}

// mapped reports whether the container's ids differ from the node's.
func (t *translation) mapped() bool { return t.userns().GetMode() == runtime.NamespaceMode_POD }

// UserNamespace returns the user namespace options of a pod; mode NODE, the node's namespace, if it
// requests none.
func UserNamespace(pod *runtime.PodSandboxConfig) *runtime.UserNamespace {
	u := pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if u == nil {
		return &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE}
	}
	return u
}

// HostRoot returns the node's ids of root in a pod's containers.
func HostRoot(pod *runtime.PodSandboxConfig) (uid, gid uint32) {
	u := UserNamespace(pod)
	if u.GetMode() != runtime.NamespaceMode_POD {
		return 0, 0
	}
	return u.GetUids()[0].GetHostId(), u.GetGids()[0].GetHostId() // checked: one mapping each, from 0
}

// checkUserns accepts the options of KEP-127: the node's user namespace, or one for the pod with a
// single mapping that starts at 0. The remaining namespaces of the node must allow the mounts that
// belong to them without privileges over them.
func checkUserns(field string, o *runtime.NamespaceOption, node Node) error {
	u := o.GetUsernsOptions()
	field += "namespace_options."
	switch {
	case u == nil:
		return nil
	case u.GetMode() == runtime.NamespaceMode_NODE:
		if len(u.GetUids()) > 0 || len(u.GetGids()) > 0 {
			return invalid(field+"userns_options", "mode NODE takes no uids and gids")
		}
		return nil
	case u.GetMode() != runtime.NamespaceMode_POD:
		return invalid(field+"userns_options", "mode %s is not one that a user namespace can have", u.GetMode())
	}
	if err := checkMapping(field+"userns_options.uids", u.GetUids()); err != nil {
		return err
	}
	if err := checkMapping(field+"userns_options.gids", u.GetGids()); err != nil {
		return err
	}
	switch {
	case o.GetPid() == runtime.NamespaceMode_NODE:
		return invalid(field+"pid", "it is NODE: a pod with a user namespace cannot have the node's processes")
	case o.GetIpc() == runtime.NamespaceMode_NODE:
		return invalid(field+"ipc", "it is NODE: a pod with a user namespace cannot have the node's IPC")
	case node.NoUserNamespaces != "":
		return unsupported(field+"userns_options",
			"this node cannot run pods with user namespaces: %s; set mode NODE (hostUsers: true in the pod's manifest)",
			node.NoUserNamespaces)
	}
	return nil
}

// checkMapping accepts exactly one mapping, for a pod's user namespace.
func checkMapping(field string, mappings []*runtime.IDMapping) error {
	if len(mappings) != 1 {
		return invalid(field, "there must be one mapping, not %d", len(mappings))
	}
	m := mappings[0]
	switch {
	case m.GetContainerId() != 0:
		return invalid(field, "the mapping begins with %d and not with 0: the containers would have no root",
			m.GetContainerId())
	case m.GetLength() == 0:
		return invalid(field, "the mapping has no ids")
	case uint64(m.GetHostId())+uint64(m.GetLength()) > math.MaxUint32:
		return invalid(field, "the mapping goes beyond the largest id, %d", uint32(math.MaxUint32-1))
	}
	return nil
}

func sameMappings(a, b *runtime.UserNamespace) bool {
	return equalMappings(a.GetUids(), b.GetUids()) && equalMappings(a.GetGids(), b.GetGids())
}

func equalMappings(a, b []*runtime.IDMapping) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !proto.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// checkIDs rejects a user and groups outside the pod's user namespace.
func (t *translation) checkIDs() error {
	if !t.mapped() {
		return nil
	}
	uids, gids := idCount(t.userns().GetUids()), idCount(t.userns().GetGids())
	outside := func(what string, id, length uint32) error {
		return fault.New(fault.Invalid, "%s %d is outside the pod's user namespace, which has %d ids from 0 on; "+
			"take a lower one, or give the pod a longer mapping (namespace_options.userns_options) or none "+
			"(hostUsers: true in its manifest)", what, id, length)
	}
	if t.in.User.UID >= uids {
		return outside("user", t.in.User.UID, uids)
	}
	if t.in.User.GID >= gids {
		return outside("group", t.in.User.GID, gids)
	}
	for _, gid := range t.in.User.AdditionalGIDs {
		if gid >= gids {
			return outside("supplemental group", gid, gids)
		}
	}
	return nil
}

// idCount returns the number of ids in a mapping accepted by [checkMapping].
func idCount(mappings []*runtime.IDMapping) uint32 {
	if len(mappings) == 0 {
		return 0
	}
	return mappings[0].GetLength()
}

// checkMountMappings rejects contradictory id mappings of a volume, and those that this node does
// not support.
func (t *translation) checkMountMappings(field string, m *runtime.Mount) error {
	uids, gids := m.GetUidMappings(), m.GetGidMappings()
	if len(uids) == 0 && len(gids) == 0 {
		return nil
	}
	for name, mappings := range map[string][]*runtime.IDMapping{"uidMappings": uids, "gidMappings": gids} {
		if len(mappings) == 0 {
			return invalid(field+"."+name, "uidMappings and gidMappings go together")
		}
		for _, one := range mappings {
			if one.GetLength() == 0 {
				return invalid(field+"."+name, "a mapping has no ids")
			}
		}
	}
	if m.GetImage() != nil && !(t.mapped() && equalMappings(uids, t.userns().GetUids()) &&
		equalMappings(gids, t.userns().GetGids())) {
		return invalid(field+".uidMappings",
			"an image is mounted with the mapping of the pod's user namespace, and no other")
	}
	if !t.in.Node.MountSetattr {
		return unsupported(field+".uidMappings",
			"this node's kernel cannot mount with mapped ids: it has no mount_setattr(2), which Linux 5.12 brought")
	}
	return nil
}

// ociMappings converts mappings to those of OCI.
func ociMappings(mappings []*runtime.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range mappings {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(),
			Size: m.GetLength()})
	}
	return out
}
