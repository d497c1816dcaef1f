package spec

//lint:file-ignore SA1019 the string fields for profiles, deprecated, are all that kubelets before 1.24 send

import (
	"fmt"
	"path"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// invalid returns an error for a field that is wrong in itself.
func invalid(field, format string, args ...any) error {
	return fault.New(fault.Invalid, "%s: %s", field, fmt.Sprintf(format, args...))
}

// unsupported returns an error for a field that requests a feature missing in this version or on
// this node.
func unsupported(field, format string, args ...any) error {
	return fault.New(fault.Unimplemented, "%s: %s", field, fmt.Sprintf(format, args...))
}

func (t *translation) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

func (t *translation) security() *runtime.LinuxContainerSecurityContext {
	return t.in.Container.GetLinux().GetSecurityContext()
}

// check validates the fields that no other step reads.
func (t *translation) check() error {
	c := t.in.Container
	if c.GetMetadata().GetName() == "" {
		return invalid("metadata.name", "a container needs a name")
	}
	if c.GetWindows() != nil {
		t.note(noWindows)
	}
	if _, err := CDIDevices(c); err != nil {
		return err
	}
	if _, err := LogPath(t.in.Pod, c); err != nil {
		return err
	}
	if _, _, err := StopSignal(c, t.in.Image); err != nil {
		return err
	}
	if named := t.in.Image.StopSignal; named != "" && c.GetStopSignal() == runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		if _, ok := imageSignal(named); !ok {
			t.note("the image's stop signal %.100q is unknown: using SIGTERM", named)
		}
	}
	return t.checkSecurity()
}

func (t *translation) checkSecurity() error {
	const f = "linux.security_context."
	sc := t.security()
	own, pod := sc.GetNamespaceOptions().GetUsernsOptions(), t.userns()
	if own != nil && (own.GetMode() != pod.GetMode() || !sameMappings(own, pod)) {
		return invalid(f+"namespace_options.userns_options",
			"it differs from the pod's: a container cannot leave its pod's user namespace")
	}
	if sc.GetPrivileged() {
		// The CRI requires that the pod allows privileged containers; the pod's own isolation
		// depends on it.
		if !t.in.Pod.GetLinux().GetSecurityContext().GetPrivileged() {
			return invalid(f+"privileged",
				"the pod was not made for privileged containers; set linux.security_context.privileged in its "+
					"configuration")
		}
		if sc.GetApparmor() != nil || sc.GetApparmorProfile() != "" || sc.GetSelinuxOptions() != nil {
			t.note("apparmor and selinux_options have no effect on a privileged container")
		}
		return nil
	}
	t.noteSELinux(sc.GetSelinuxOptions())
	return checkSELinux(f, sc.GetSelinuxOptions(), t.in.Node)
}

// securityProfile returns p or, if p is nil, the value of the deprecated string field of kubelets
// before 1.24. It returns nil if neither is set.
func securityProfile(field string, p *runtime.SecurityProfile, deprecated string) (*runtime.SecurityProfile, error) {
	if p == nil {
		switch {
		case deprecated == "":
			return nil, nil
		case deprecated == "runtime/default", deprecated == "docker/default":
			p = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
		case deprecated == "unconfined":
			p = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
		case strings.HasPrefix(deprecated, "localhost/"):
			p = &runtime.SecurityProfile{
				ProfileType:  runtime.SecurityProfile_Localhost,
				LocalhostRef: strings.TrimPrefix(deprecated, "localhost/"),
			}
		default:
			return nil, invalid(field, "profile %q is none of runtime/default, unconfined, localhost/<profile>",
				deprecated)
		}
	}
	switch p.GetProfileType() {
	case runtime.SecurityProfile_RuntimeDefault, runtime.SecurityProfile_Unconfined:
		if p.GetLocalhostRef() != "" {
			return nil, invalid(field, "localhost_ref is set with profile type %s", p.GetProfileType())
		}
	case runtime.SecurityProfile_Localhost:
		if p.GetLocalhostRef() == "" {
			return nil, invalid(field, "profile type Localhost needs a localhost_ref")
		}
	default:
		return nil, invalid(field, "unknown profile type %d", p.GetProfileType())
	}
	return p, nil
}

// absolute returns the clean form of a path in a container, which must be absolute.
func absolute(field, p string) (string, error) {
	if !path.IsAbs(p) {
		return "", invalid(field, "%q is not an absolute path", p)
	}
	if strings.ContainsRune(p, 0) {
		return "", invalid(field, "%q contains a NUL byte", p)
	}
	return path.Clean(p), nil
}
