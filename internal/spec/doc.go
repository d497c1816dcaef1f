// Package spec translates the configuration of a CRI client into an OCI runtime spec.
//
// It is pure: it reads no file, makes no system call and keeps no state. Facts about the node or
// the image's files are passed in: the node's ([Node], from package node), the user
// ([ResolvedUser]), host paths and devices ([ResolvedMount], [ResolvedDevice], from package
// rootfs), the pod's namespaces (from the keeper).
//
// Every field of PodSandboxConfig and ContainerConfig is honoured, or rejected with an error that
// names it; no field is silently ignored. A request that this node can honour only in part (a
// capability that the node lacks, an oom_score_adj below our limit) is honoured as far as possible,
// and [Container] returns a note about it. testdata/fields.txt lists the outcome for each field; a
// test compares it with the messages of cri-api.
//
// Errors are of kind fault.Invalid (the request is wrong) or fault.Unimplemented (this version or
// this node lacks the feature).
package spec
