// Package config reads the operator's configuration: one struct, one TOML file, overridden by
// flags.
//
// No configuration is required: [Default] is complete, and a file only changes the keys that it
// names. An unknown key, a value out of range, and contradicting values are errors that name the
// key. Only cmd/kurid imports the package; it passes the values to the other packages.
//
// It keeps no state and reads only the given file.
package config
