// Package profile takes profiles of its own process for another process: of the keeper and of
// "kurid streams", for kurid's debug socket. (kurid profiles itself with net/http/pprof.)
//
// A profile goes through a pipe whose write end the requesting process names as /proc/PID/fd/N. So
// its size is unlimited, and no file is left behind.
//
// The keeper is built with the tag lean, to be small: this package then links none of Go's
// profiling code and offers only goroutine stacks. A keeper without the tag has all profiles, and
// samples its memory only during a request ([Quiet]).
//
// The package keeps no state. Its one lock is held while a profile is taken: the Go runtime takes
// only one of each kind at a time.
package profile
