package image

import (
	"slices"
	"strings"

	"github.com/containerd/platforms"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/cpu"

	"github.com/kuri-cri/kuri/internal/fault"
)

// nodePlatform returns the best platform of this node. On amd64 the variant is the
// microarchitecture level of the psABI.
func nodePlatform() imagespec.Platform {
	p := platforms.DefaultSpec()
	if p.Architecture == "amd64" {
		p.Variant = amd64Level(cpu.X86.HasCX16 && cpu.X86.HasPOPCNT && cpu.X86.HasSSE42 && cpu.X86.HasSSSE3,
			cpu.X86.HasAVX2 && cpu.X86.HasBMI1 && cpu.X86.HasBMI2 && cpu.X86.HasFMA && cpu.X86.HasOSXSAVE,
			cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512CD && cpu.X86.HasAVX512DQ &&
				cpu.X86.HasAVX512VL)
	}
	return p
}

// amd64Level returns the highest level whose features, and those of all lower levels, the CPU has.
func amd64Level(v2, v3, v4 bool) string {
	switch {
	case v2 && v3 && v4:
		return "v4"
	case v2 && v3:
		return "v3"
	case v2:
		return "v2"
	}
	return ""
}

// ParsePlatform returns the normalised platform of a runtime handler ("linux/arm64", "arm/v7",
// "linux(6.1+feature)/amd64"), or "" for the node's own. The error is of kind Invalid.
func ParsePlatform(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return "", fault.New(fault.Invalid, "platform %q: %w", s, err)
	}
	p = platforms.Normalize(p)
	if p.OS != "linux" {
		return "", fault.New(fault.Invalid, "platform %q: its operating system is %s, not linux", s, p.OS)
	}
	if isNode(p) && p.OSVersion == "" && len(p.OSFeatures) == 0 {
		return "", nil
	}
	spelled := platforms.FormatAll(p)
	if _, err := platforms.Parse(spelled); err != nil {
		return "", fault.New(fault.Invalid, "platform %q: its version or a feature has an invalid character", s)
	}
	return spelled, nil
}

// isNode reports whether p, normalised, is this node's architecture and variant.
func isNode(p imagespec.Platform) bool {
	node := platforms.Normalize(platforms.DefaultSpec())
	return p.Architecture == node.Architecture && p.Variant == node.Variant
}

// requested returns the platform for a result of ParsePlatform.
func requested(platform string) imagespec.Platform {
	if platform == "" {
		return nodePlatform()
	}
	p, err := platforms.Parse(platform)
	if err != nil { // not from ParsePlatform: nothing matches it
		return imagespec.Platform{OS: "unknown", Architecture: platform}
	}
	if isNode(platforms.Normalize(p)) { // it differs only by version or features: use the best variant
		p.Variant = nodePlatform().Variant
	}
	return p
}

// fits matches the platforms whose images run on the given platform, and orders them: the platform
// itself, then older variants. Within a variant, the image that uses most of the platform's
// features is best, then the one with the best matching version (os.version). An image that needs a
// feature (os.features) that the platform does not have does not match.
func fits(platform string) platforms.MatchComparer {
	w := requested(platform)
	return versionMatcher{platforms.Only(w), w.OSVersion}
}

// versionMatcher also compares OS versions, which package platforms does for Windows only.
type versionMatcher struct {
	platforms.MatchComparer
	version string // the requested version; "": any
}

func (v versionMatcher) Match(p imagespec.Platform) bool {
	return v.MatchComparer.Match(p) && v.agreement(p.OSVersion) >= 0
}

func (v versionMatcher) Less(a, b imagespec.Platform) bool {
	switch {
	case v.MatchComparer.Less(a, b):
		return true
	case v.MatchComparer.Less(b, a):
		return false
	}
	return v.agreement(a.OSVersion) > v.agreement(b.OSVersion)
}

// agreement rates how well a version matches the requested one; -1 means not at all. Linux versions
// have no defined order, so two versions match if one is a prefix of the other by its dotted parts:
// 6.1 matches 6.1.9, not 6.10. An image without a version matches any, and is best if none is
// requested.
func (v versionMatcher) agreement(version string) int {
	switch {
	case version == "" && v.version == "":
		return 1
	case version == "" || v.version == "":
		return 0
	}
	has, wants := strings.Split(version, "."), strings.Split(v.version, ".")
	both := min(len(has), len(wants))
	switch {
	case !slices.Equal(has[:both], wants[:both]):
		return -1
	case len(has) == len(wants):
		return 2*both + 1
	}
	return 2 * both
}

// describePlatform names the platform in an error.
func describePlatform(platform string) string {
	if platform == "" {
		return "this node's platform " + platforms.Format(nodePlatform())
	}
	return "the platform " + platform + " of the runtime handler"
}
