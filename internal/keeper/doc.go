// Package keeper is kurid's side of the keeper. It starts kuri-holder, which starts kuri-keeper,
// unless they already serve the state directory, and offers the keeper's protocol (package api)
// with Go types and the error kinds of package fault. If the running holder and keeper are other
// builds than the programs beside kurid, it replaces them (replace.go).
//
// The keeper serves every container of the node and outlives kurid; package keeper/server describes
// what it owns. This package owns only the connection, and the cgroups that it creates for a new
// holder. A holder that exits removes its cgroups; the cgroups of a killed holder are used by the
// next one.
//
// A Client is safe for concurrent use. It reconnects when the connection is lost. Every verb of the
// protocol is idempotent, so a call whose connection broke is repeated on the keeper's successor.
package keeper
