// Package keeper is kurid's half of the keeper: it starts kuri-holder, and that kuri-keeper, where none serves the state
// directory, and speaks the keeper's protocol (package api) with Go types and the error kinds of package fault.
//
// Where those that serve are other builds than the programs beside kurid, it replaces them (replace.go).
//
// The keeper is the parent of every container of the node and outlives kurid. What it owns is told in package
// keeper/server; this half owns nothing on the disk or in the kernel but the connection, and the cgroups that it makes
// for a holder that it starts. A holder that ends removes them; those that a killed one left serve the next one.
//
// A Client is safe for concurrent use. It dials anew by itself when the connection is lost; every verb of the protocol
// is idempotent, so a call whose connection broke is asked again of the keeper that takes the place of a dead one.
package keeper
