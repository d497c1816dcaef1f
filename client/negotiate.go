package client

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The API versions, newest first.
const (
	v1       = "v1"
	v1alpha2 = "v1alpha2"
)

// service is one of the two CRI services, with a call that shows whether it is served.
type service struct {
	name  string
	probe func(context.Context, grpc.ClientConnInterface, ...grpc.CallOption) error
}

var (
	runtimeService = service{"RuntimeService",
		func(ctx context.Context, cc grpc.ClientConnInterface, opts ...grpc.CallOption) error {
			_, err := runtimeapi.NewRuntimeServiceClient(cc).Version(ctx, &runtimeapi.VersionRequest{}, opts...)
			return err
		}}
	imageService = service{"ImageService",
		func(ctx context.Context, cc grpc.ClientConnInterface, opts ...grpc.CallOption) error {
			_, err := runtimeapi.NewImageServiceClient(cc).ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{}, opts...)
			return err
		}}
)

// in returns the full gRPC name of the service in an API version.
func (s service) in(version string) string { return "runtime." + version + "." + s.name }

// negotiate returns the newest version of s that the endpoint serves.
func (c *conn) negotiate(ctx context.Context, s service, opts ...grpc.CallOption) (string, error) {
	missing := &NotServedError{Endpoint: c.endpoint}
	for _, version := range []string{v1, v1alpha2} {
		err := s.probe(ctx, c.in(version), opts...)
		if err == nil {
			return version, nil
		}
		if status.Code(err) != codes.Unimplemented {
			return "", fmt.Errorf("ask %s for %s: %w", c.endpoint, s.in(version), c.explain(err))
		}
		missing.Tried = append(missing.Tried, s.in(version))
		missing.Answers = append(missing.Answers, status.Convert(err).Message())
	}
	missing.Offered = c.offered(ctx)
	return "", missing
}

// offered returns the CRI services that the endpoint serves. It is for error messages: most often a
// runtime endpoint was confused with an image endpoint.
func (c *conn) offered(ctx context.Context) []string {
	var names []string
	for _, s := range []service{runtimeService, imageService} {
		for _, version := range []string{v1, v1alpha2} {
			if s.probe(ctx, c.in(version)) == nil {
				names = append(names, s.in(version))
			}
		}
	}
	return names
}

// NotServedError reports that an endpoint answers, but serves no supported version of the requested service.
type NotServedError struct {
	Endpoint string
	Tried    []string // full names of the services that were tried, in order
	Answers  []string // the server's answer to each of them
	Offered  []string // full names of the CRI services that it serves
}

func (e *NotServedError) Error() string {
	offered := "it offers no other CRI service"
	if len(e.Offered) > 0 {
		offered = "it offers " + strings.Join(e.Offered, " and ")
	}
	return fmt.Sprintf("%s serves neither %s; %s (its answers: %s)",
		e.Endpoint, strings.Join(e.Tried, " nor "), offered, strings.Join(e.Answers, "; "))
}

// GRPCStatus makes status.Code return Unimplemented for the error.
func (e *NotServedError) GRPCStatus() *status.Status {
	return status.New(codes.Unimplemented, e.Error())
}

// in returns the connection for an API version.
func (c *conn) in(version string) grpc.ClientConnInterface {
	if version == v1 {
		return c.grpc
	}
	return versionedConn{to: c.grpc, version: version}
}

// versionedConn calls the methods of runtime.v1 under the name of another version. The messages are
// identical, see doc.go.
type versionedConn struct {
	to      grpc.ClientConnInterface
	version string
}

func (r versionedConn) method(full string) string {
	if rest, ok := strings.CutPrefix(full, "/runtime.v1."); ok {
		return "/runtime." + r.version + "." + rest
	}
	return full
}

// Invoke makes a unary call.
func (r versionedConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return r.to.Invoke(ctx, r.method(method), args, reply, opts...)
}

// NewStream begins a streaming call.
func (r versionedConn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string,
	opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return r.to.NewStream(ctx, desc, r.method(method), opts...)
}
