// Package nft writes the nftables tables of the built-in network, over netlink: [PortRules] is the
// table for masquerading and host ports, [Isolation] the two tables that keep pods of different
// Kubernetes namespaces apart. Both draw their table in their comment.
//
// It owns the tables whose names the caller (package bridge) gives, kuri-<hash>, and reads and
// changes no others. Tables are replaced whole, in one transaction, or changed by the elements of
// their sets and maps. They survive the daemon.
//
// Values of this package are immutable and have no lock; the caller runs one change at a time.
package nft
