// Package challenge parses the authentication challenge of a registry and the answer of its token
// server: RFC 9110, section 11.6, and the "Token Authentication Specification" of the CNCF
// distribution project. kurid and kuri login share it, so both understand the same registries.
//
// It is pure: it sends nothing and keeps no state. The caller decides whether credentials may go to
// the address in a challenge.
package challenge
