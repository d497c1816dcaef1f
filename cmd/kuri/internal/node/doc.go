// Package node has the verbs for the node and for Kuri's daemon on it: kuri check, doctor, info, metrics, trace, daemon,
// network, version and wipe. All but check, info and version need Kuri's own runtime. Wipe may start a kurid of its own,
// which it stops again, with a socket in a temporary directory.
package node
