package rootfs

import (
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// User returns the user of a container's first process: what the security context asks for (nil asks for nothing), else
// imageUser (the image configuration's "user[:group]"), else root. Names are looked up in the image's own etc/passwd and
// etc/group. lowerdirs are the image's layers, top first.
func User(lowerdirs []string, sc *runtime.LinuxContainerSecurityContext, imageUser string) (spec.ResolvedUser, error) {
	return spec.ResolvedUser{}, fault.New(fault.Unimplemented, "rootfs.User is being written")
}
