// Package layer keeps unpacked image layers, each once, by the digest of its uncompressed tar (the diffID).
//
// It owns <root>/layers/<diffID>/{fs/, layer.json} and <root>/tmp, both of mode 0700, for what is in a layer (setuid
// programs, device nodes) is meant for containers alone. A layer's fs directory is an overlayfs lowerdir: a whiteout of
// the image is a character device 0:0 there, an opaque directory has the xattr trusted.overlay.opaque, so a layer does
// not depend on the layers below it and all layers of an image unpack at once.
//
// A layer comes to be in one pass: download, sha256, decompress, sha256, untar into <root>/tmp, verify both digests,
// write layer.json, rename into layers/. A directory under layers/ is therefore complete, but it is on the disk for
// good only after [Writing.Sync]; package image calls that once before it records an image. What is found in tmp when the
// store opens belongs to a daemon that was killed and is removed.
//
// Fetching, decompressing and the reading of the tar each have a goroutine, with a few hundred KiB between them, whose
// hashes are worked out on the way, those of two streams at once (package sha256); small files are made by a few more
// goroutines (writers.go), and large ones are sent on their way to the disk while the rest unpacks
// (flush.go). A layer that is being unpacked takes about 2 MiB of memory, whatever its size.
//
// The tar itself is not kept; beside fs/ there is what it takes to write it again, byte for byte ([Store.Tar], recipe.go).
//
// layer.json has a checksum of the layer's tree, made on the way ([Store.Check], survey.go).
//
// What a layer cannot know of the layers below it, how a directory looks that it has no entry for, is put right by one
// more small layer on top of the stack ([Store.Patch]).
//
// An image's tar is hostile: every entry's path is resolved by the kernel within the layer's directory (openat2), the
// last component is never followed, and entries, path lengths and the ratio of unpacked to packed bytes are bounded. An
// entry that will not do is refused by its name.
//
// References are counted in memory: image records and containers hold their layers, and a layer that nobody holds is
// removed when the last of them lets go, or by [Store.Prune]. After a restart the owners hold theirs again before the
// first Prune.
//
// A directory whose layer.json cannot be read is set aside as long as somebody holds the layer: a container may run on it
// (damaged.go).
//
// A Store is safe for concurrent use. Its lock is never held while a layer is unpacked or deleted, unless the disk is so full
// that a layer can only be deleted where it is.
package layer
