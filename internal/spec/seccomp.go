package spec

//lint:file-ignore SA1019 the string fields for profiles, deprecated, are all that kubelets before 1.24 send

import (
	"path/filepath"
	"strings"

	"github.com/moby/profiles/seccomp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SeccompFile returns the host path of the seccomp profile that a container names, or "". The
// caller puts its contents into Input.LocalhostSeccomp.
func SeccompFile(ctr *runtime.ContainerConfig) (string, error) {
	sc := ctr.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() {
		return "", nil
	}
	p, err := seccompProfile(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	if err != nil || p.GetProfileType() != runtime.SecurityProfile_Localhost {
		return "", err
	}
	return p.GetLocalhostRef(), nil
}

func seccompProfile(p *runtime.SecurityProfile, deprecated string) (*runtime.SecurityProfile, error) {
	field := "linux.security_context.seccomp"
	if p == nil {
		field += "_profile_path"
	}
	p, err := securityProfile(field, p, deprecated)
	if err != nil {
		return nil, err
	}
	if p.GetProfileType() != runtime.SecurityProfile_Localhost {
		return p, nil
	}
	// Some clients use the syntax of the deprecated field; other runtimes accept both.
	path := strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
	if !filepath.IsAbs(path) {
		return nil, invalid(field, "%q is not an absolute path of a profile", p.GetLocalhostRef())
	}
	return &runtime.SecurityProfile{ProfileType: p.GetProfileType(), LocalhostRef: path}, nil
}

// seccomp sets the seccomp filter. An unset profile means unconfined in the CRI (a kubelet sends
// RuntimeDefault for the default). RuntimeDefault is Docker's profile, which depends on the granted
// capabilities. A privileged container has no filter, even if it requests one.
func (t *translation) seccomp() error {
	const field = "linux.security_context.seccomp"
	profile, err := seccompProfile(t.security().GetSeccomp(), t.security().GetSeccompProfilePath())
	if err != nil {
		return err
	}
	if profile == nil || profile.GetProfileType() == runtime.SecurityProfile_Unconfined {
		return nil
	}
	if t.security().GetPrivileged() {
		t.note("seccomp has no effect on a privileged container")
		return nil
	}
	if !t.in.Node.Seccomp {
		return unsupported(field, "this node's kernel has no seccomp filters; use Unconfined")
	}
	if profile.GetProfileType() == runtime.SecurityProfile_RuntimeDefault {
		t.spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(t.spec)
	} else {
		t.spec.Linux.Seccomp, err = seccomp.LoadProfile(string(t.in.LocalhostSeccomp), t.spec)
	}
	if err != nil {
		return invalid(field, "profile %q: %v", profile.GetLocalhostRef(), err)
	}
	return nil
}
