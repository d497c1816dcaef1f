// Package layer stores unpacked image layers, each once, by the digest of its uncompressed tar (the
// diffID).
//
// It owns <root>/layers/<diffID>/{fs/, layer.json} and <root>/tmp. Both have mode 0700, because
// setuid programs and device nodes of a layer are meant for containers only. The fs directory is an
// overlayfs lowerdir: a whiteout is a character device 0:0, and an opaque directory has the xattr
// trusted.overlay.opaque. A layer therefore does not depend on the layers below it, and all layers
// of an image are unpacked at once.
//
// A layer is made in one pass: download, sha256, decompress, sha256, untar into <root>/tmp, verify
// both digests, write layer.json, rename into layers/. A directory below layers/ is therefore
// complete. It is durable only after [WriteSession.Sync], which package image calls once before it
// records an image. Entries in tmp at open belong to a killed daemon and are removed.
//
// Fetching, decompressing and reading the tar run in one goroutine each, with a few hundred KiB of
// buffers between them (prefetch.go). The hashes of two streams are computed at once (package
// sha256). A few more goroutines create small files (writers.go). Writeback of large files starts
// while the rest is unpacked (flush.go). Unpacking a layer takes about 2 MiB of memory, whatever
// its size.
//
// The tar itself is not kept. A recipe beside fs/ allows to write it again, byte for byte
// ([Store.Tar], recipe.go).
//
// layer.json has a checksum of the layer's tree ([Store.Check], checksum.go).
//
// A directory that a layer contains only implicitly must look as in the layers below, which the
// layer cannot know. A patch layer on top of the stack corrects such directories ([Store.Patch],
// implied.go).
//
// An image's tar is hostile. The kernel resolves every path within the layer's directory (openat2),
// and the last component is never followed. The number of entries, the length of paths and the
// ratio of decompressed to compressed bytes are limited. An error names the offending entry.
//
// References are counted in memory: image records and containers hold their layers. An unheld layer
// is removed when its last holder releases it, or by [Store.Prune]. After a restart the owners hold
// their layers again before the first Prune.
//
// A directory whose layer.json cannot be read is set aside while somebody holds the layer, because
// a container may run on it (damaged.go).
//
// A Store is safe for concurrent use. Its lock is not held while a layer is unpacked or deleted,
// unless the disk is so full that a layer must be deleted in place.
package layer
