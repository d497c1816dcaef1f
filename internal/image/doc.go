// Package image keeps the node's images: it pulls them, loads them from archives, names them, and
// removes them.
//
// On disk it owns <root>/images: a record <id>.json for each image, and in blobs/sha256 the
// unchanged config and manifest of each image and the indexes that led to it. Layers belong to
// package layer; an image's record holds its layers there. Compressed layers are not kept. There is
// one record per image and no common index, so a damaged record is set aside and affects only its
// own image. The same applies to an image with missing layers.
//
// An image is identified by its ID, the digest of its config. References point to images. A tag
// points to one image, and pulling a tag that has moved re-points it. A digest reference
// ("repository@sha256:…") names the content that the registry had when the image was pulled, and
// stays with its image.
//
// Order of writing: unpack the layers, write config and manifest to temporary files, one syncfs,
// rename these files, then write and flush the record. A listed image therefore has all its files,
// even after a power cut. Removal happens in reverse order.
//
// An image comes from an origin, which is a repository or an archive. One [chooser] finds it there.
// A saved image is the same image where it is loaded: same ID, layers and names (provenance.go).
//
// Stored content can be checked against its digests and checksums. Damaged parts can be fetched
// again individually ([Store.Check], [Store.Repair]).
//
// If verifiers are configured (package verifier), each pull calls them once it has resolved the
// reference, before it fetches anything but the manifest. This includes the pull of an image that
// is already here. Loading an archive and creating a container do not call them.
//
// A pull is identified by reference and credentials: callers with the same ones share it, and it
// goes on when they leave. Get and List read an immutable snapshot and never wait. The store's lock
// is held over small writes to disk, never over network access or the unpacking of a layer.
package image
