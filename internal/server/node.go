package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	goruntime "runtime"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper"
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
	readyErr := s.Pods.Ready(ctx)
	ready, network := runtimeCondition(readyErr), s.networkCondition(ctx)
	resp := &runtime.StatusResponse{
		Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{ready, network}},
		Features: &runtime.RuntimeFeatures{
			SupplementalGroupsPolicy:  true,
			MountOptions:              true,
			UserNamespacesHostNetwork: s.Pods.Node.NoUserNamespaces == "",
		},
	}
	for _, name := range s.Pods.HandlerNames() { // all of them run the same OCI runtime
		resp.RuntimeHandlers = append(resp.RuntimeHandlers,
			&runtime.RuntimeHandler{Name: name, Features: &runtime.RuntimeHandlerFeatures{
				RecursiveReadOnlyMounts: s.Pods.Node.MountSetattr,
				UserNamespaces:          s.Pods.Node.NoUserNamespaces == "",
			}})
	}
	if req.GetVerbose() {
		var err error
		if resp.Info, err = s.verbose(ctx, readyErr); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func runtimeCondition(err error) *runtime.RuntimeCondition {
	c := &runtime.RuntimeCondition{Type: runtime.RuntimeReady, Status: err == nil}
	if err == nil {
		return c
	}
	c.Reason, c.Message = "KeeperNotReady", err.Error()
	var hung *keeper.Hung
	if !errors.As(err, &hung) { // whose message has its own remedy
		c.Message += "; another is started within seconds; if this stays, look at the log of kurid and restart it"
	}
	return c
}

// networkCondition has the reason that containerd and CRI-O have too: tools look for it.
func (s *runtimeService) networkCondition(ctx context.Context) *runtime.RuntimeCondition {
	c := &runtime.RuntimeCondition{Type: runtime.NetworkReady, Status: true}
	if err := s.Network.Ready(ctx); err != nil {
		c.Status, c.Reason, c.Message = false, "NetworkPluginNotReady", err.Error()
	} else if notice := s.Network.Notice(); notice != "" {
		c.Reason, c.Message = "NetworkNotice", notice
	}
	return c
}

// verbose returns the info map of a verbose Status, by key. Values are JSON, but lastCNILoadStatus,
// which is text in containerd too.
func (s *runtimeService) verbose(ctx context.Context, ready error) (map[string]string, error) {
	values := map[string]any{"config": s.Info, "golang": goruntime.Version()}
	if s.About != nil {
		maps.Copy(values, s.About(ctx, ready))
	}
	info := make(map[string]string, len(values))
	for key, value := range values {
		if text, ok := value.(Text); ok {
			info[key] = string(text)
			continue
		}
		raw, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encode %s of the status: %w", key, err)
		}
		info[key] = string(raw)
	}
	return info, nil
}

// Text is a value of [Options].About that is returned verbatim, not as JSON.
type Text string

func (s *runtimeService) RuntimeConfig(context.Context,
	*runtime.RuntimeConfigRequest) (*runtime.RuntimeConfigResponse, error) {
	driver := runtime.CgroupDriver_CGROUPFS
	if s.SystemdCgroup {
		driver = runtime.CgroupDriver_SYSTEMD
	}
	return &runtime.RuntimeConfigResponse{Linux: &runtime.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

func (s *runtimeService) UpdateRuntimeConfig(_ context.Context,
	req *runtime.UpdateRuntimeConfigRequest) (*runtime.UpdateRuntimeConfigResponse, error) {
	// A kubelet that was given no pod CIDR asks with an empty one; one of a dual-stack node joins two by a comma.
	var ranges []netip.Prefix
	for _, cidr := range strings.FieldsFunc(req.GetRuntimeConfig().GetNetworkConfig().GetPodCidr(),
		func(r rune) bool { return r == ',' }) {
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
