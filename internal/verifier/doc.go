// Package verifier asks the operator's programs whether an image may be used, typically by
// verifying its signatures.
//
// The programs are the files of one directory. They are called like containerd's "bindir" verifiers
// (docs/image-verification.md of containerd), so that the same programs work with both:
//
//	PROGRAM -name REFERENCE -digest sha256:… -stdin-media-type application/vnd.oci.descriptor.v1+json
//
// The descriptor that the reference resolves to is on standard input, as JSON. Exit code 0 accepts
// the image; anything else refuses it, with the program's standard output as the reason. An image
// is accepted if all programs accept it. They run one after the other, in the order of their names.
//
// In case of doubt the image is refused: a configured directory that is missing, empty or has more
// than [MaxPrograms] files; a file that cannot be run; a program that times out or is killed.
// containerd accepts the image in the first two cases and ignores further programs in the third.
//
// Each program runs as process 1 of its own PID namespace. When it ends, times out, or kurid ends,
// the kernel kills everything it has started.
//
// A program that queries the registry needs the credentials of the pull. It finds them in
// $DOCKER_CONFIG/config.json in docker's format, where signature tools look. $DOCKER_CONFIG is a
// directory for this pull below Options.Scratch. It is removed when the programs have ended;
// directories left by a killed daemon are removed at the next start.
//
// The caller is package image. [Programs] is immutable and safe for concurrent use.
package verifier
