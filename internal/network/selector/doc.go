// Package selector is the network that the daemon uses. [Selector] sends each pod to the network
// that is configured: CNI if its directory has a configuration at the moment of the request, else
// the bridge; or always the same one, see [Choice]. A network.Result names the network that
// attached the pod, and Detach goes to that one.
//
// A Detach that fails is retried in the background. The retry queue is in memory: after a restart
// [Selector.Reclaim] fills it again from the attachments and leases that belong to no pod. It owns
// the goroutines of the retries and of the hourly GC of CNI plugins; Close ends them and waits. Its
// mutex is never held over a call to a network.
//
// It owns nothing on the disk or in the kernel.
package selector
