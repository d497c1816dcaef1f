// Package event keeps a log of numbered events. Readers come back for events newer than the last
// one they saw.
//
// A log is a ring in memory: it owns nothing on disk or in the kernel and ends with the process.
// Numbers begin at 1, increase by one and are never reused. When the log is full, the oldest event
// is dropped. A reader that asks for a dropped event gets "lost" and must read the whole state
// again.
//
// A Log is safe for concurrent use. Its mutex is held for a few instructions only.
package event
