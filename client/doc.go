// Package client dials the two endpoints of a CRI runtime and speaks whichever version of the API it serves, as a
// kubelet does. It works against any runtime.
//
//	rt, err := client.DialRuntime(ctx, "unix:///run/kuri/kuri.sock", client.Options{Timeout: 2 * time.Minute})
//	if err != nil { … }
//	defer rt.Close()
//	pods, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
//
// [Runtime] and [Images] embed the generated clients of k8s.io/cri-api's runtime/v1, so every call of the API is there
// under its own name. A runtime that serves only v1alpha2 is used through the same methods: the messages of the two
// versions are the same on the wire, only the name of the service differs, and the connection writes that name.
//
// # Negotiation
//
// The version is chosen once, when the endpoint is dialled, and for each endpoint on its own: RuntimeService by its
// Version call, ImageService by its ImageFsInfo call. v1 is asked first. v1alpha2 is asked only when v1 answered
// Unimplemented, for that alone means that the service is not there; every other error is the caller's to see, since a
// runtime in trouble must not be mistaken for an old one. A connection that breaks is dialled again when next used and
// keeps the version that was chosen, also when the runtime that comes back serves more.
//
// # Endpoints
//
// An endpoint is a unix socket, "unix:///path" or the bare absolute path. Who may open the socket may do anything on the
// node that root may, so TCP is refused. The runtime and the image endpoint may be one socket or two.
//
// # State
//
// A Runtime or Images may be used by any number of goroutines at once. The package keeps nothing on disk and starts
// nothing but the connections' own goroutines, which end with Close.
package client
