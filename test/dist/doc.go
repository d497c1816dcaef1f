// Package dist tests what `make dist` makes: that the same commit gives the same bytes, what is in
// a package and with which modes, and what dpkg does with it. bin/ must have been built. Needs root
// for dpkg.
package dist
