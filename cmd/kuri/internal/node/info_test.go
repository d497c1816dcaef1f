package node

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// The page shows the data of other runtimes by the keys of containerd and CRI-O.
func TestInfoOfOtherRuntimes(t *testing.T) {
	page := func(told map[string]string) string {
		i := &info{version: &runtimeapi.VersionResponse{RuntimeName: "x"}, status: &runtimeapi.StatusResponse{Info: told},
			config: &runtimeapi.RuntimeConfigResponse{}, usage: &runtimeapi.ImageFsInfoResponse{}}
		var out strings.Builder
		if err := cli.Table(&out, i.rows()); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	for _, tt := range []struct {
		info map[string]string
		want []string
	}{
		{map[string]string{
			"config":            `{"containerd":{"snapshotter":"overlayfs","defaultRuntimeName":"runc","runtimes":{}},"sandboxImage":"registry.k8s.io/pause:3.10","containerdRootDir":"/var/lib/containerd","rootDir":"/var/lib/containerd/io.containerd.grpc.v1.cri","stateDir":"/run/containerd/io.containerd.grpc.v1.cri"}`,
			"golang":            `"go1.26.1"`,
			"lastCNILoadStatus": "OK",
			"cniconfig":         `{"PluginDirs":["/opt/cni/bin"],"PluginConfDir":"/etc/cni/net.d","Networks":[{"Config":{"Name":"cni-loopback","Plugins":[{"Network":{"type":"loopback"}}]},"IFName":"lo"},{"Config":{"Name":"pods","Plugins":[{"Network":{"type":"bridge"}}]},"IFName":"eth0"}]}`,
		}, []string{"go1.26.1", "overlayfs", "runc", "registry.k8s.io/pause:3.10", "/var/lib/containerd\n",
			"CNI: pods (bridge) of /etc/cni/net.d"}},
		// CRI-O
		{map[string]string{"config": `{"sandboxImage":"registry.k8s.io/pause:3.10"}`},
			[]string{"pause image:", "registry.k8s.io/pause:3.10"}},
		{map[string]string{"lastCNILoadStatus": "cni config load failed"}, []string{"CNI: cni config load failed"}},
		{map[string]string{"config": `[1]`, "programs": `"?"`, "node": `{"kernel":3}`, "storage": `7`, "golang": `{}`},
			[]string{"runtime:", "pods:"}},
	} {
		got := page(tt.info)
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("there is no %q in\n%s", want, got)
			}
		}
	}
}
