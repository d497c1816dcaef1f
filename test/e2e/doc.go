// Package e2e is the stories of what Kuri must do, told with the real programs: one file for each chapter, each chapter
// with what must be refused. What is told by the command line is in testdata, for testscript.
package e2e
