// Package listen opens the daemon's listening sockets in a way that lets them outlive it: a client that dials while no
// daemon runs waits in the backlog until the next one accepts, and is never refused.
//
// A socket comes from one of three places, in this order: from systemd, which has it open for a .socket unit
// (sd_listen_fds(3)); from the holder, which keeps it since the last daemon (package holder); or it is made, and given to
// the holder to keep. Whoever else keeps it, the socket's file stays when this process ends.
//
// The holder has a socket under the name "listen/<device>.<inode><path>": one whose file has been removed or replaced
// meanwhile is not taken for the one that clients dial, and is dropped. When the holder dies, the next one is given the sockets.
// While the daemon lives, the file of a socket that somebody removes is made anew at once, with a new socket behind it.
// The package owns the sockets' files. [Sockets] has two goroutines, which look after these things and end with Close.
package listen
