package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	goruntime "runtime"
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func (s *runtimeService) Version(ctx context.Context, _ *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{
		Version:           "0.1.0", // of the kubelet's runtime API, which has been this number from the beginning
		RuntimeName:       "kuri",
		RuntimeVersion:    s.Options.Version,
		RuntimeApiVersion: apiVersion(ctx),
	}, nil
}

func (s *runtimeService) Status(ctx context.Context, req *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	network := &runtime.RuntimeCondition{Type: runtime.NetworkReady, Status: true}
	if err := s.Network.Ready(ctx); err != nil {
		network.Status = false
		network.Reason = "NetworkNotReady"
		network.Message = err.Error()
	} else if notice := s.Network.Notice(); notice != "" {
		network.Reason = "NetworkNotice"
		network.Message = notice
	}
	ready := &runtime.RuntimeCondition{Type: runtime.RuntimeReady, Status: true}
	if err := s.Pods.Ready(ctx); err != nil {
		ready.Status = false
		ready.Reason = "KeeperNotReady"
		ready.Message = err.Error()
	}
	resp := &runtime.StatusResponse{
		Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{ready, network}},
		Features: &runtime.RuntimeFeatures{
			SupplementalGroupsPolicy:  true,
			MountOptions:              true,
			UserNamespacesHostNetwork: s.Pods.Node.NoUserNamespaces == "",
		},
	}
	for _, name := range s.Pods.HandlerNames() { // all of them run the same OCI runtime
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtime.RuntimeHandler{Name: name, Features: &runtime.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: s.Pods.Node.MountSetattr,
			UserNamespaces:          s.Pods.Node.NoUserNamespaces == "",
		}})
	}
	if req.GetVerbose() {
		config, err := json.Marshal(s.Info)
		if err != nil {
			return nil, fmt.Errorf("encode the configuration: %w", err)
		}
		resp.Info = map[string]string{"config": string(config), "golang": strconv.Quote(goruntime.Version())}
	}
	return resp, nil
}

func (s *runtimeService) RuntimeConfig(context.Context, *runtime.RuntimeConfigRequest) (*runtime.RuntimeConfigResponse, error) {
	driver := runtime.CgroupDriver_CGROUPFS
	if s.SystemdCgroup {
		driver = runtime.CgroupDriver_SYSTEMD
	}
	return &runtime.RuntimeConfigResponse{Linux: &runtime.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

func (s *runtimeService) UpdateRuntimeConfig(_ context.Context, req *runtime.UpdateRuntimeConfigRequest) (*runtime.UpdateRuntimeConfigResponse, error) {
	// A kubelet that was given no pod CIDR asks with an empty one; one of a dual-stack node joins two by a comma.
	var ranges []netip.Prefix
	for _, cidr := range strings.FieldsFunc(req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(), func(r rune) bool { return r == ',' }) {
		p, err := netip.ParsePrefix(strings.TrimSpace(cidr))
		if err != nil {
			return nil, fault.New(fault.Invalid, "runtime_config.network_config.pod_cidr: %w", err)
		}
		ranges = append(ranges, p.Masked())
	}
	if len(ranges) == 0 {
		return &runtime.UpdateRuntimeConfigResponse{}, nil
	}
	return &runtime.UpdateRuntimeConfigResponse{}, s.SetPodCIDR(ranges)
}
