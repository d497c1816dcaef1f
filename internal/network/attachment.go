package network

// Attachment is a pod that is attached to a network, for an audit.
type Attachment struct {
	Pod    Pod
	Result *Result
	// Free is true if a container of the pod may configure the pod's network (CAP_NET_ADMIN).
	Free bool
}
