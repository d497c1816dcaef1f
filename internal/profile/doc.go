// Package profile takes profiles of the process that it is in, for another process: the keeper's and that of the process which
// streams, for kurid, whose debug socket tells them. (Of itself kurid takes them with net/http/pprof.)
//
// A profile goes through a pipe, of which the asking process names its end, /proc/PID/fd/N: so it has no limit of size, and no
// file is left.
//
// The keeper runs from a sealed copy in memory, so all that it links is memory of the node, for as long as it runs. With the
// build tag lean, which it has, this package links nothing of Go's profiles and has the stacks alone. A keeper without the
// tag has them all, and samples its memory only while it is asked for ([Quiet]).
package profile
