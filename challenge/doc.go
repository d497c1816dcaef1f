// Package challenge reads what a registry says when it wants to know who asks, and what its token server answers: RFC 9110,
// section 11.6, and the "Token Authentication Specification" of the CNCF's distribution project. kurid, which pulls, and
// kuri login, which asks whether credentials are taken, understand the same registries by it.
//
// It is pure: it sends nothing and keeps nothing. Whether credentials may go where a challenge says is for the caller.
package challenge
