// Package image keeps the node's images: it pulls them, loads them from archives, names them, and removes them.
//
// On disk it owns <root>/images: one record per image, <id>.json, and in blobs/sha256 the image's config and manifest
// as they came, and the indexes that led to it. The layers are package layer's; an image's record holds its layers there. Compressed layers are not kept.
// One record per image rather than one index for all: a damaged record is set aside and costs only its own image, and
// so does an image whose layers are gone.
//
// An image's identity is its ID, the digest of its config. References point to images: tags (one image each; pulling a
// tag that has moved re-points it) and digests ("repository@sha256:…", what the registry called the content when it was
// pulled), which stay with their image for good.
//
// Order of writing: layers unpacked, config and manifest beside their places, one syncfs, their places, then the record,
// flushed. So an image that is listed has all its files, also after a power cut. Removal goes the other way round.
//
// An image comes from an origin, a repository or an archive, and is found there by one [chooser]. A saved image is the
// same where it is loaded: its ID, its layers, its names (travel.go).
//
// What is stored can be checked against its digests and checksums, and what is damaged fetched again, alone
// ([Store.Check], [Store.Repair]).
//
// Where there are verifiers (package verifier), each pull asks them when it knows what its reference stands for, and before
// anything but the manifest is fetched; also the pull of an image that is here. Loading an archive and making a container
// do not ask.
//
// A pull is identified by reference and credentials: callers with the same ones share it, and it goes on when they
// leave. Reading (Get, List) answers from an immutable snapshot and waits for nothing. The lock that commits and removals
// take is held over small writes to the disk, never over the network or a layer.
package image
