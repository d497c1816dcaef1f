// Package e2e has the stories of Kuri, told with the real programs: one file for each chapter, which also
// covers the requests that must be refused. Stories of the command line are in testdata, for testscript.
package e2e
