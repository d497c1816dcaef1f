// Package image makes container images for the tests and for the example, out of programs that are on the machine or
// that the Go compiler makes. Nothing is downloaded, and the same files give the same digests.
//
// It owns nothing on disk. Anyone may call it, at once too: it keeps no state.
package image
