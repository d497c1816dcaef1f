package image

import (
	"slices"
	"strings"
)

// A name is the key under which records and lookups know an image: a full reference. For an image
// that was pulled for another platform than the node's, the name has a space and the platform
// appended ("docker.io/library/busybox:1 linux/arm64"). One reference can therefore point to one
// image for each platform. References contain no spaces.

// nameFor returns the name of a reference for a platform, as returned by [ParsePlatform].
func nameFor(ref, platform string) string {
	if platform == "" {
		return ref
	}
	return ref + " " + platform
}

// splitName splits a name made by nameFor.
func splitName(name string) (ref, platform string) {
	ref, platform, _ = strings.Cut(name, " ")
	return ref, platform
}

// refsOf returns the distinct references of the names, sorted.
func refsOf(names []string) []string {
	var refs []string
	for _, name := range names {
		ref, _ := splitName(name)
		refs = append(refs, ref)
	}
	slices.Sort(refs)
	return slices.Compact(refs)
}
