package layer

// limits bound the resources that a layer can take.
type limits struct {
	entries   int   // tar entries
	path      int   // bytes of an entry's path
	depth     int   // components of an entry's path
	implied   int   // directories without an entry of their own
	xattrs    int   // bytes of names and values of one entry's extended attributes
	ratio     int64 // decompressed to compressed bytes …
	freeBytes int64 // … once this many bytes are decompressed
}

// defaultLimits are far above real images and far below what hurts a node. gzip cannot exceed a
// ratio of 1:1032, reached only by zeros; real layers reach 1:30.
var defaultLimits = limits{
	entries:   4_000_000,
	path:      3072,
	depth:     255,
	implied:   100_000,
	xattrs:    64 << 10,
	ratio:     250,
	freeBytes: 1 << 30,
}
