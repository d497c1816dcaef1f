// Package event keeps a log of numbered events, for readers that come back for what is newer than what they know.
//
// A log is a ring in memory: it owns nothing on disk and in the kernel, and ends with the process. Numbers begin at 1, go
// up by one, and are never used twice. The oldest events are dropped when there are more than the log may keep; a reader
// that asks for one of those is told so, and must look at the whole state again.
//
// A Log is safe for concurrent use. Its mutex is held for a few instructions.
package event
