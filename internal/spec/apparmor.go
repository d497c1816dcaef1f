package spec

//lint:file-ignore SA1019 the string fields for profiles, deprecated, are all that kubelets before 1.24 send

import (
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DefaultAppArmor is the AppArmor profile of containers that request the runtime's default, or no
// profile.
const DefaultAppArmor = "kuri-default"

// AppArmor returns the profile of a container, "" for unconfined, and whether the container
// requested one. The default also applies to containers that request nothing. The caller must load
// the profile. A privileged container is unconfined.
func AppArmor(sc *runtime.LinuxContainerSecurityContext, node Node) (profile string, asked bool, err error) {
	const f = "linux.security_context."
	if sc.GetPrivileged() {
		return "", false, nil
	}
	return appArmor(f, sc.GetApparmor(), sc.GetApparmorProfile(), node)
}

func appArmor(field string, p *runtime.SecurityProfile, deprecated string, node Node) (profile string,
	asked bool, err error) {
	field += "apparmor"
	if p == nil {
		field += "_profile"
	}
	p, err = securityProfile(field, p, deprecated)
	if err != nil {
		return "", false, err
	}
	switch {
	case p.GetProfileType() == runtime.SecurityProfile_Unconfined:
		return "", true, nil
	case p.GetProfileType() == runtime.SecurityProfile_Localhost && !node.AppArmor:
		return "", true, unsupported(field, "AppArmor is not enabled on this node")
	case p.GetProfileType() == runtime.SecurityProfile_Localhost:
		// Some clients, critest among them, use the syntax of the deprecated field; other runtimes
		// accept both.
		name := strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
		if name == "" {
			return "", true, invalid(field, "%q names no profile", p.GetLocalhostRef())
		}
		return name, true, nil
	case !node.AppArmor:
		return "", p != nil, nil // "equivalent to not specifying a profile": the node cannot apply one
	}
	return DefaultAppArmor, p != nil, nil
}

func (t *translation) apparmor() (err error) {
	t.spec.Process.ApparmorProfile, _, err = AppArmor(t.security(), t.in.Node)
	return err
}
