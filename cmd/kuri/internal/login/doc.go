// Package login has kuri login and logout, and looks up the credentials that they keep for the verbs that pull. The file
// and its helpers are package credential's.
package login
