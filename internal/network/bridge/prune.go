package bridge

import "slices"

// Users returns the pods that have an address of the bridge, as namespace/name, sorted.
func (b *Network) Users() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var pods []string
	for _, l := range b.pool.Leases {
		pods = append(pods, l.Pod)
	}
	slices.Sort(pods)
	return pods
}
