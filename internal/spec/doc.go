// Package spec translates what a CRI client asks for into an OCI runtime spec.
//
// It is pure: no file is read, no system call made, nothing kept. What needs the node or the image's files is found out
// by others and handed in: the node's facts ([Node], read by package node), the user ([ResolvedUser]), host paths and
// devices ([ResolvedMount], [ResolvedDevice], found by package rootfs), the pod's namespaces (from the keeper).
//
// Every field of PodSandboxConfig and ContainerConfig is honoured, or refused with an error that names it; none is
// passed over in silence. What can only be honoured in part on this node (a capability that the node itself lacks, an
// oom_score_adj below what we may set) is honoured as far as it goes, and said in the notes that [Container] returns.
// The table in testdata/fields.txt says which field is which; a test walks the messages of cri-api against it.
//
// Errors are of kind fault.Invalid (the request is wrong) or fault.Unimplemented (the request is right, this version or
// this node has it not).
package spec
