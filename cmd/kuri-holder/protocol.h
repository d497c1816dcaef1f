// The holder's protocol: every number that holder.c and the Go package internal/holder share. A test of the package holds
// its own constants against these.
//
// Clients connect to <state>/holder.sock (SOCK_SEQPACKET). Each request is one packet and gets one packet in answer, in
// the byte order of the machine.
//
//	request  u32 version, u32 operation, i32 pid (or index), then a name up to the end of the packet
//	answer   i32 errno (0 for success), i32 first, i32 second, then data up to the end of the packet
//
// PUT carries one descriptor (SCM_RIGHTS), and so does the answer to GET. An operation that this version does not know
// is answered with ENOSYS, another version of the protocol with EPROTO. A name has 1 to HOLDER_NAME_MAX bytes from '!' to
// '~'. One that begins with '/' is the path of a program, for REEXEC and PROGRAM.
#ifndef KURI_HOLDER_PROTOCOL_H
#define KURI_HOLDER_PROTOCOL_H

#define HOLDER_VERSION 1

#define HOLDER_INFO 1    // first: the holder's pid; second: the keeper's, 0 while there is none; data: the holder's version
#define HOLDER_PUT 2     // hold the descriptor under the name, in place of one of that name
#define HOLDER_GET 3     // a duplicate of the descriptor of that name; ENOENT
#define HOLDER_DROP 4    // close the descriptor of that name; a name that is not held is a success
#define HOLDER_NAMES 5   // names from an index on, each with a NUL; first: the index of the next ones, 0 at the end
#define HOLDER_WATCH 6   // keep the exit status of the process, should the holder come to reap it
#define HOLDER_EXITED 7  // first: 1 if the holder has reaped the process; second: its wait status; ENOENT if not watched
#define HOLDER_FORGET 8  // watch the process no more; one that is not watched is a success
#define HOLDER_RESTART 9 // kill the keeper; a new one starts
#define HOLDER_REEXEC 10 // start the holder's program anew in this process, from its file or that at the name; connections end
#define HOLDER_PROGRAM 11 // start keepers from now on from the file at the name, or from the descriptor of that name; ENOENT

#define HOLDER_NAME_MAX 160
#define HOLDER_ANSWER_MAX 4096 // bytes of an answer, at most
#define HOLDER_CLIENTS_MAX 32  // connections at once; one more is closed

#endif
