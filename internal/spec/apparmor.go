package spec

//lint:file-ignore SA1019 the string fields for profiles, deprecated, are all that kubelets before 1.24 send

import (
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DefaultAppArmor is the name of the AppArmor profile of containers that ask for the runtime's default, or for none.
const DefaultAppArmor = "kuri-default"

// AppArmor returns the profile that confines a container, "" for none, and whether it was asked for: the default is for
// those that ask for nothing, too. The caller sees to it that the profile is loaded. A privileged container has none.
func AppArmor(sc *runtime.LinuxContainerSecurityContext, node Node) (profile string, asked bool, err error) {
	const f = "linux.security_context."
	if sc.GetPrivileged() {
		return "", false, nil
	}
	return appArmor(f, sc.GetApparmor(), sc.GetApparmorProfile(), node)
}

func appArmor(field string, p *runtime.SecurityProfile, deprecated string, node Node) (profile string, asked bool, err error) {
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
		return "", true, absent(field, "AppArmor is not enabled on this node")
	case p.GetProfileType() == runtime.SecurityProfile_Localhost:
		// Some clients, critest among them, write the reference as the deprecated field has it; the other runtimes take both.
		name := strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
		if name == "" {
			return "", true, invalid(field, "%q names no profile", p.GetLocalhostRef())
		}
		return name, true, nil
	case !node.AppArmor:
		return "", p != nil, nil // "equivalent to not specifying a profile", and there is nothing to apply one with
	}
	return DefaultAppArmor, p != nil, nil
}

func (t *translation) apparmor() (err error) {
	t.spec.Process.ApparmorProfile, _, err = AppArmor(t.security(), t.in.Node)
	return err
}
