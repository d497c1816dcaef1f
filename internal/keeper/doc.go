// Package keeper is kurid's half of the keeper: it starts kuri-keeper where none serves the state directory, and speaks
// its protocol (package api) with Go types and the error kinds of package fault.
//
// The keeper is the parent of every container of the node and outlives kurid. What it owns is told in package
// keeper/server; this half owns nothing on the disk or in the kernel but the connection, and the cgroup that it puts a
// keeper into which it starts. A keeper that ends on an empty node removes that cgroup itself; what a killed one left is
// removed before the next one starts.
//
// A Client is safe for concurrent use. It dials anew by itself when the connection is lost; every verb of the protocol
// is idempotent, so a call whose connection broke is asked once more.
package keeper
