package image

import (
	"slices"
	"strings"
)

// A name is what the records and the lookup know an image by: a reference in full, and where the image was pulled for
// another platform than the node's, a space and that platform behind it ("docker.io/library/busybox:1 linux/arm64"). So
// one reference may stand for one image for each platform. References have no spaces.

// nameFor returns the name of a reference for a platform, which is as [ParsePlatform] returns it.
func nameFor(ref, platform string) string {
	if platform == "" {
		return ref
	}
	return ref + " " + platform
}

// splitName returns what nameFor has joined.
func splitName(name string) (ref, platform string) {
	ref, platform, _ = strings.Cut(name, " ")
	return ref, platform
}

// refsOf returns the references of sorted names, sorted, each once.
func refsOf(names []string) []string {
	var refs []string
	for _, name := range names {
		ref, _ := splitName(name)
		refs = append(refs, ref)
	}
	slices.Sort(refs)
	return slices.Compact(refs)
}
