// Package idle gives memory back while a process has nothing to do: the heap that the Go runtime
// keeps for a next burst, and the mappings of the program's own file.
//
// The kernel maps sixteen pages of a program for each that is used, and never unmaps one while
// there is free memory. So a daemon that has started shows nearly its whole file as resident.
// Unmapped pages stay in the page cache and are mapped again when they are used, without being
// read.
//
// The package has no state.
package idle
