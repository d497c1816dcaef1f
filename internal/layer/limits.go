package layer

// limits bound what a layer may ask for.
type limits struct {
	entries   int   // tar entries
	path      int   // bytes of an entry's path
	depth     int   // components of an entry's path
	implied   int   // directories without an entry of their own
	xattrs    int   // bytes of names and values of one entry's extended attributes
	ratio     int64 // unpacked bytes to packed bytes …
	freeBytes int64 // … beyond so many unpacked bytes
}

// defaultLimits are far above what real images have and far below what hurts a node. gzip cannot pack better than
// 1:1032, and only zeros so; honest layers reach 1:30.
var defaultLimits = limits{
	entries:   4_000_000,
	path:      3072,
	depth:     255,
	implied:   100_000,
	xattrs:    64 << 10,
	ratio:     250,
	freeBytes: 1 << 30,
}
