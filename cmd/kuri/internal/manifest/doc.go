// Package manifest reads Kubernetes Pod manifests and translates them to the CRI. It does the work
// of a kubelet between its configuration and its runtime, except for everything that needs a
// cluster.
//
// [Decode] is strict: a field unknown to Kubernetes is an error that names it. All fields known to
// Kubernetes are in one table; see fields.go. A field is honoured, ignored with a warning if the
// pod works the same without it, or refused. Nothing is dropped silently. A test compares the types
// of k8s.io/api with the table, so a field of a newer Kubernetes is noticed when the module is
// updated, and refused until then.
//
// The translation is pure. Data from the node or the image is passed in as [Facts] and [Image];
// things to create on the node are returned as [Volume]. A manifest is untrusted input: its names
// become parts of paths, so they are first checked to be DNS labels.
//
// The package does no I/O and keeps no state. Its values must not be used concurrently.
package manifest
