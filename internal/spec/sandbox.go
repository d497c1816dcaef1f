package spec

import (
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

// CheckSandbox refuses a sandbox configuration that is wrong, or that asks for something which is not there yet, by the
// name of the field.
func CheckSandbox(cfg *runtime.PodSandboxConfig, node Node) error {
	return fault.New(fault.Unimplemented, "spec.CheckSandbox is being written")
}

// ResolvConf returns the resolv.conf of a pod: what cfg says, or the host's file when cfg is nil or empty.
func ResolvConf(cfg *runtime.DNSConfig, host []byte) ([]byte, error) {
	return nil, fault.New(fault.Unimplemented, "spec.ResolvConf is being written")
}
