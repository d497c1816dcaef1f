// Package session is the wire of the keeper's sessions (exec and attach), which both halves of the keeper use: messages
// with descriptors on a Unix socket, and the reading of a process's output.
//
// The bytes of a session do not pass through the keeper's protocol. The keeper makes the pipes or the terminal of a
// process and hands their outer ends over as descriptors (SCM_RIGHTS, unix(7)); kurid reads and writes them itself. So
// there is nothing to frame or to copy twice, a full pipe is the back-pressure, a window size is an ioctl of kurid's, the
// keeper holds no buffer for a client, and streams of kurid's go on while the keeper is busy. One connection for each
// session makes the end of either side known to the other by the kernel, even when it was killed.
//
// A message is its length (4 bytes, big endian) and a protobuf message (package keeper/api, session.proto). The descriptors come with
// the first byte of the length.
//
// A [Conn] and a [Source] each belong to one reader and one writer at a time. Nothing here survives a restart.
package session
