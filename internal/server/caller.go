package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/step"
)

// caller is the process that opened a connection, as the kernel knows it (SO_PEERCRED, unix(7)).
// Its program is the name of its file, or of the process where that cannot be read.
type caller step.Caller

// AuthType implements credentials.AuthInfo.
func (caller) AuthType() string { return "SO_PEERCRED" }

// LogValue is how the log shows a caller.
func (c caller) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("pid", int(c.Pid)), slog.Int64("uid", int64(c.UID)), slog.String("program", c.Program))
}

// peerCredentials are transport credentials that admit everybody who could open the socket, record
// the caller, and count what a connection has half-sent.
type peerCredentials struct{ partial *partial }

// ServerHandshake records the process at the other end of the connection. A connection of another
// kind than a Unix socket has no caller.
func (p peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if a, ok := conn.(*acceptedConn); ok {
		conn = a.Conn
	}
	u, ok := conn.(*net.UnixConn)
	conn = p.partial.watch(conn)
	if !ok {
		return conn, caller{}, nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, nil, err
	}
	if cerr != nil {
		return conn, caller{}, nil
	}
	return conn, caller{cred.Pid, cred.Uid, programOf(cred.Pid)}, nil
}

func programOf(pid int32) string {
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
		return filepath.Base(exe)
	}
	return process.Name(int(pid))
}

// ClientHandshake is not for a server.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a server's")
}

// Info says that nothing is encrypted.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "SO_PEERCRED"}
}

// Clone returns the same: there is no state.
func (p peerCredentials) Clone() credentials.TransportCredentials { return p }

// OverrideServerName does nothing.
func (peerCredentials) OverrideServerName(string) error { return nil }

// callerOf returns the caller of a request.
func callerOf(ctx context.Context) caller {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return caller{}
	}
	c, _ := p.AuthInfo.(caller)
	return c
}

// changes are the methods that change what is on the node, by their names without the service: a
// line in the log says who called one, and of what.
var changes = map[string]bool{
	"RunPodSandbox": true, "StopPodSandbox": true, "RemovePodSandbox": true, "UpdatePodSandboxResources": true,
	"CreateContainer": true, "StartContainer": true, "StopContainer": true, "RemoveContainer": true,
	"UpdateContainerResources": true,
	"PullImage":                true, "RemoveImage": true, "Load": true, "Prune": true, "Tag": true, "Untag": true,
	"UpdateRuntimeConfig": true,
	"Exec":                true, "Attach": true, "PortForward": true, // open streams that may change anything
}

func isChange(method string) bool { return changes[methodOf(method)] }

// subjectOf returns what a request is about, or what its answer says was made. Of ids that are
// known it knows the names too.
func (s *Server) subjectOf(message any) step.Subject {
	var is step.Subject
	if r, ok := message.(interface{ GetPodSandboxId() string }); ok {
		is.PodID = r.GetPodSandboxId()
	}
	if r, ok := message.(interface{ GetContainerId() string }); ok {
		is.ContainerID = r.GetContainerId()
	}
	if s.pods != nil {
		is = s.pods.Subject(is)
	}
	switch r := message.(type) {
	case *runtime.RunPodSandboxRequest:
		is.Namespace, is.Pod = r.GetConfig().GetMetadata().GetNamespace(), r.GetConfig().GetMetadata().GetName()
	case *runtime.CreateContainerRequest:
		is.Container, is.Image = r.GetConfig().GetMetadata().GetName(), r.GetConfig().GetImage().GetImage()
	case *runtime.PullImageRequest:
		is.Image = r.GetImage().GetImage()
	case *runtime.RemoveImageRequest:
		is.Image = r.GetImage().GetImage()
	}
	return is
}

// detailsOf returns further log attributes of a request or an answer.
func detailsOf(message any) []any {
	switch r := message.(type) {
	case *runtime.RunPodSandboxRequest:
		return []any{"attempt", r.GetConfig().GetMetadata().GetAttempt()}
	case *runtime.CreateContainerRequest:
		return []any{"attempt", r.GetConfig().GetMetadata().GetAttempt()}
	case *runtime.StopContainerRequest:
		return []any{"timeout", r.GetTimeout()}
	case *runtime.PullImageResponse:
		return []any{"image_ref", r.GetImageRef()}
	}
	return nil
}
