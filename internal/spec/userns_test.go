package spec

import (
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestUserNamespaceNeedsTheNode(t *testing.T) {
	ids := []*runtime.IDMapping{{HostId: 70000, Length: 65536}}
	pod := &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"},
		Linux: &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtime.NamespaceOption{UsernsOptions: &runtime.UserNamespace{Uids: ids, Gids: ids}},
		}},
	}
	node := testNode(t, "v1")
	if err := CheckSandbox(pod, node); err != nil {
		t.Error(err)
	}
	if uid, gid := HostRoot(pod); uid != 70000 || gid != 70000 {
		t.Errorf("the root of the pod is %d:%d", uid, gid)
	}
	node.NoUserNamespaces = "it is too old"
	if err := CheckSandbox(pod, node); fault.Of(err) != fault.Unimplemented ||
		!strings.Contains(err.Error(), "it is too old") {
		t.Errorf("%v", err)
	}
	if uid, gid := HostRoot(&runtime.PodSandboxConfig{}); uid != 0 || gid != 0 {
		t.Errorf("the root of a pod without one is %d:%d", uid, gid)
	}
}
