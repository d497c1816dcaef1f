// Package login has kuri login and logout, and looks up the stored credentials for verbs that pull.
// Package credential owns the file and its helpers.
package login
