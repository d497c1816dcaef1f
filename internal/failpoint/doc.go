// Package failpoint kills the process, like kill -9, at a named step of a workflow. It does so only
// in programs built with the tag "failpoint"; in others it does nothing.
//
// A test writes the name of a step to the file "failpoint" in the directory passed to Arm. The
// first process that reaches this step removes the file and kills itself. The package has no other
// state and no lock.
package failpoint
