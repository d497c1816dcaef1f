// Package node has the verbs for the node and for Kuri's daemon on it: kuri check, doctor, info,
// metrics, trace, daemon, network, version and wipe. All except check, info and version need Kuri's
// own runtime. wipe may start a temporary kurid, with a socket in a temporary directory.
package node
