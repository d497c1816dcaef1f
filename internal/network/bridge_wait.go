package network

// podUp waits until the pod's end of a link carries packets, in the pod's namespace.
func podUp(result *Result) error {
	if err := operational(Interface); err != nil {
		return err
	}
	for _, ip := range result.IPs {
		if err := answering(Interface, ip); err != nil {
			return err
		}
	}
	return nil
}

// hostUp waits until the node's end and the bridge carry packets, in the order in which they come up.
func hostUp(on built, l *lease) error {
	if err := operational(vethName(l.PodID)); err != nil {
		return err
	}
	return operational(on.name)
}
