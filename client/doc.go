// Package client connects to the two endpoints of a CRI runtime and uses whichever API version they
// serve, as a kubelet does. It works with any runtime.
//
//	rt, err := client.DialRuntime(ctx, "unix:///run/kuri/kuri.sock", client.Options{Timeout: 2 * time.Minute})
//	if err != nil { … }
//	defer rt.Close()
//	pods, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
//
// [Runtime] and [Images] embed the generated clients of k8s.io/cri-api's runtime/v1, so they have
// every call of the API under its own name. A runtime that serves only v1alpha2 is used through the
// same methods: the messages of the two versions are identical on the wire. Only the service name
// differs, and the connection replaces it.
//
// # Negotiation
//
// The version is chosen once for each endpoint, when it is dialled: with the Version call for
// RuntimeService, with ImageFsInfo for ImageService. v1 is tried first. v1alpha2 is tried only if
// v1 returns Unimplemented, the only code that means that the service does not exist. Any other
// error is returned to the caller, so that a failing runtime is not mistaken for an old one. A
// broken connection is redialled at the next call and keeps its version, even if the runtime now
// serves a newer one.
//
// # Endpoints
//
// An endpoint is a unix socket: "unix:///path", or an absolute path. Access to the socket is
// equivalent to root on the node, so TCP is refused. The runtime endpoint and the image endpoint
// may be the same socket.
//
// # State
//
// A Runtime or Images is safe for concurrent use. The package keeps nothing on disk. Its only goroutines belong to
// connections, and end with Close.
package client
