// Package listen opens listening sockets that outlive the daemon. A client that dials while no
// daemon runs waits in the backlog until the next one accepts, and is never refused.
//
// A socket comes from systemd, which opened it for a .socket unit (sd_listen_fds(3)); otherwise
// from the holder, which keeps it for the last daemon (package holder); otherwise it is created and
// given to the holder. The socket's file stays when this process ends if systemd or the holder
// keeps the socket.
//
// The holder keeps a socket under the name "listen/<device>.<inode><path>". If its file has been
// removed or replaced meanwhile, clients dial another socket, so the kept one is dropped. When the
// holder dies, its successor is given the sockets. If somebody removes the file of a socket while
// the daemon runs, a new socket is created at once.
//
// The package owns the sockets' files. [Sockets] runs two goroutines for these tasks, which end
// with Close.
package listen
