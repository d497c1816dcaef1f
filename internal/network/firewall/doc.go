// Package firewall finds chains of the node's own firewall that drop what pods of the built-in
// network send beyond the node.
//
// Each base chain of the kernel decides on a packet by itself, and a drop is final: no rule in a
// table of ours opens another's. The package walks the rules of nftables (with iptables-nft and
// firewalld) and of iptables-legacy as a packet from the bridge would. It has firewalld accept the
// bridge, over D-Bus. Into other tables it puts two rules for the bridge if [Config.Open] is set;
// else [Firewall.Notice] has the commands for the operator.
//
// It owns
//
//	firewalld.json in its state directory  that the bridge is in firewalld's zone trusted because we asked
//	rules in chains of others              with Config.Comment as their comment
//
// Both survive the daemon; [Firewall.TakeBack] removes them. A [Firewall] is safe for concurrent use and has no lock.
package firewall
