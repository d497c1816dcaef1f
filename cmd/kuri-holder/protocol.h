// The holder's protocol: every number that holder.c and the Go package internal/holder share. A test of that package
// compares its constants with these.
//
// Clients connect to <state>/holder.sock (SOCK_SEQPACKET). Each request is one packet and is
// answered with one packet, in the machine's byte order.
//
//	request  u32 version, u32 operation, i32 pid (or index), then a name to the end of the packet
//	answer   i32 errno (0: success), i32 first, i32 second, then data to the end of the packet
//
// PUT and the answer to GET carry one descriptor (SCM_RIGHTS). The answer to an unknown operation
// is ENOSYS, to another protocol version EPROTO. A name has 1 to HOLDER_NAME_MAX bytes from '!' to
// '~'. For REEXEC and PROGRAM, a name that begins with '/' is the path of a program.
#ifndef KURI_HOLDER_PROTOCOL_H
#define KURI_HOLDER_PROTOCOL_H

#define HOLDER_VERSION 1

#define HOLDER_INFO 1    // first: the holder's pid; second: the keeper's, 0 if none runs; data: the holder's version
#define HOLDER_PUT 2     // hold the descriptor under the name; replaces an older one
#define HOLDER_GET 3     // return a duplicate of the named descriptor; ENOENT
#define HOLDER_DROP 4    // close the named descriptor; success if there is none
#define HOLDER_NAMES 5   // names from an index on, NUL-terminated; first: the index to continue at, 0 at the end
#define HOLDER_WATCH 6   // keep the exit status of the process if the holder reaps it
#define HOLDER_EXITED 7  // first: 1 if the holder has reaped the process; second: its wait status; ENOENT if not watched
#define HOLDER_FORGET 8  // stop watching the process; success if it is not watched
#define HOLDER_RESTART 9 // kill the keeper; another one starts
#define HOLDER_REEXEC 10 // execute the holder's program again in this process, from its file or from the path; connections end
#define HOLDER_PROGRAM 11 // start future keepers from the path, or from the named descriptor; ENOENT

#define HOLDER_NAME_MAX 160
#define HOLDER_ANSWER_MAX 4096 // maximum size of an answer, bytes
#define HOLDER_CLIENTS_MAX 32  // maximum number of connections; further ones are closed

#endif
