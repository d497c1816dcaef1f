package spec

//lint:file-ignore SA1019 the string fields for profiles, deprecated, are all that kubelets before 1.24 send

import (
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestAppArmor(t *testing.T) {
	type sec = runtime.LinuxContainerSecurityContext
	typed := func(typ runtime.SecurityProfile_ProfileType, ref string) *sec {
		return &sec{Apparmor: &runtime.SecurityProfile{ProfileType: typ, LocalhostRef: ref}}
	}
	for _, c := range []struct {
		name       string
		sc         *sec
		here, none string // profile on a node with AppArmor, and on one without
		asked      bool
		hereKind   fault.Kind
		noneKind   fault.Kind
	}{
		{name: "nothing", sc: &sec{}, here: "kuri-default"},
		{name: "the default", sc: typed(runtime.SecurityProfile_RuntimeDefault, ""), here: "kuri-default", asked: true},
		{name: "the default, as of old", sc: &sec{ApparmorProfile: "runtime/default"},
			here: "kuri-default", asked: true},
		{name: "unconfined", sc: typed(runtime.SecurityProfile_Unconfined, ""), asked: true},
		{name: "unconfined, as of old", sc: &sec{ApparmorProfile: "unconfined"}, asked: true},
		{name: "the node's", sc: typed(runtime.SecurityProfile_Localhost, "mine"), here: "mine", asked: true,
			noneKind: fault.Unimplemented},
		{name: "the node's, as of old", sc: &sec{ApparmorProfile: "localhost/mine"}, here: "mine", asked: true,
			noneKind: fault.Unimplemented},
		{name: "the node's, half as of old", sc: typed(runtime.SecurityProfile_Localhost, "localhost/mine"),
			here: "mine", asked: true, noneKind: fault.Unimplemented},
		{name: "a prefix alone", sc: typed(runtime.SecurityProfile_Localhost, "localhost/"), hereKind: fault.Invalid,
			noneKind: fault.Unimplemented},
		{name: "privileged", sc: &sec{Privileged: true, ApparmorProfile: "localhost/mine"}},
		{name: "no name", sc: typed(runtime.SecurityProfile_Localhost, ""), hereKind: fault.Invalid,
			noneKind: fault.Invalid},
		{name: "not a profile", sc: &sec{ApparmorProfile: "mine"}, hereKind: fault.Invalid, noneKind: fault.Invalid},
	} {
		got, asked, err := AppArmor(c.sc, Node{AppArmor: true})
		if got != c.here || fault.Of(err) != c.hereKind || err == nil && asked != c.asked {
			t.Errorf("%s: %q, asked %v, %v", c.name, got, asked, err)
		}
		if got, _, err := AppArmor(c.sc, Node{}); got != c.none || fault.Of(err) != c.noneKind {
			t.Errorf("%s, without AppArmor: %q, %v", c.name, got, err)
		}
	}
}
