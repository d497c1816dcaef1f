// Package conntrack makes the kernel forget UDP flows to host ports that came or went. It changes
// nothing else of connection tracking, keeps no state, and may be called by anybody; package bridge
// does.
package conntrack
