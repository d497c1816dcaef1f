// Package config reads what an operator may set: one struct, one TOML file, flags above it.
//
// Zero configuration works: [Default] is complete, a file only changes what it names. A key that Kuri does not know, a
// value out of its range, and two values that contradict each other are errors that name the key. The package is
// imported by cmd/kurid alone; every other package gets the values it needs from there.
//
// It keeps no state and touches nothing but the file that it is given.
package config
