// Package verifier asks programs of the node's operator whether an image may be here: those that verify its signatures.
//
// The programs are the files of one directory, and they are called as containerd calls its "bindir" verifiers
// (docs/image-verification.md of containerd), so that the same programs serve:
//
//	PROGRAM -name REFERENCE -digest sha256:… -stdin-media-type application/vnd.oci.descriptor.v1+json
//
// with the descriptor of what the reference stands for, as JSON, on standard input. Exit code 0 accepts the image, every
// other way to end refuses it; what the program has written to standard output is the reason. An image is accepted when
// all programs accept it. They are asked one after the other, in the order of their names.
//
// Where there is doubt, the image is refused: a directory that is configured but not there, or empty, or has more than
// [MaxPrograms] files, a file that cannot be run, a program that takes too long or is killed. containerd lets pass the
// first two and skips the third.
//
// Each program runs in a PID namespace of its own, as its process 1. When it ends, or its time is over, or kurid ends,
// the kernel ends all that it has started.
//
// A program that has to ask the registry needs what the pull has: it finds the credentials in docker's format in
// $DOCKER_CONFIG/config.json, where tools for signatures look. That is a directory of this pull below Options.Scratch,
// removed when the program has ended; what a killed daemon left there goes at the next start.
//
// The caller is package image. [Programs] is immutable and safe for concurrent use.
package verifier
