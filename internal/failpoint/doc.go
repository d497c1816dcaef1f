// Package failpoint ends the process at a named step of a workflow, as kill -9 would, in programs that are built with the
// tag "failpoint", and does nothing in others.
//
// A test writes the name of a step into the file "failpoint" of the directory that was given to Arm. The first process that
// comes to that step removes the file and kills itself. The package owns nothing else, and holds no lock.
package failpoint
