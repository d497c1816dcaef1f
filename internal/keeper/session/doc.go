// Package session is the wire protocol of the keeper's sessions (exec and attach), used by both
// sides of the keeper: messages with descriptors on a unix socket, and reading a process's output.
//
// The bytes of a session do not pass through the keeper's protocol. The keeper creates the pipes or
// the terminal of a process and passes their outer ends as descriptors (SCM_RIGHTS, unix(7)). kurid
// reads and writes them itself. So nothing is framed or copied twice, and a full pipe is the
// back-pressure. kurid sets a window size by ioctl, the keeper has no buffers for clients, and
// streams continue while the keeper is busy. Each session has its own connection, so the kernel
// notifies each side when the other one ends, even if it was killed.
//
// A message is its length (4 bytes, big endian) and a protobuf message (package keeper/api,
// session.proto). Descriptors come with the first byte of the length.
//
// A [Conn] and a [Source] each have one reader and one writer at a time. Nothing here survives a
// restart.
package session
