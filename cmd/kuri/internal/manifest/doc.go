// Package manifest reads Kubernetes Pod manifests and says in the CRI's words what they ask for. It is what a kubelet
// does between its configuration and its runtime, less everything that needs a cluster.
//
// [Decode] reads strictly: a field that Kubernetes does not know is an error that names it. Every field that Kubernetes
// knows is in one table, see fields.go: it is honoured; or ignored, with a warning, where the pod does the same work
// without it; or refused. Nothing is dropped in silence. A test walks the types of k8s.io/api against the table, so a
// field that a newer Kubernetes brings is noticed when the module is updated, and refused until then.
//
// The translation is pure. What has to be looked up on the node or in the image comes in as [Facts] and [Image]; what has
// to be made on the node goes out as [Volume]. A manifest is input from outside: its names become parts of paths and
// are checked to be DNS labels first.
//
// The package does no I/O, keeps no state, and its values may be used by one goroutine at a time.
package manifest
