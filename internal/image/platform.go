package image

import (
	"github.com/containerd/platforms"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/cpu"

	"github.com/kuri-cri/kuri/internal/fault"
)

// nodePlatform is what this node runs, best of all. On amd64 the variant is the microarchitecture level of the psABI.
func nodePlatform() imagespec.Platform {
	p := platforms.DefaultSpec()
	if p.Architecture == "amd64" {
		p.Variant = amd64Level(cpu.X86.HasCX16 && cpu.X86.HasPOPCNT && cpu.X86.HasSSE42 && cpu.X86.HasSSSE3,
			cpu.X86.HasAVX2 && cpu.X86.HasBMI1 && cpu.X86.HasBMI2 && cpu.X86.HasFMA && cpu.X86.HasOSXSAVE,
			cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512CD && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512VL)
	}
	return p
}

// amd64Level names the highest level of which the processor has this and all below.
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

// ParsePlatform returns the platform that a runtime handler is for ("linux/arm64", "arm/v7") in the one spelling that the
// store uses: "" for what runs on this node anyway. The error is of kind Invalid.
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
	if node := platforms.Normalize(platforms.DefaultSpec()); p.Architecture == node.Architecture && p.Variant == node.Variant {
		return "", nil
	}
	return platforms.Format(p), nil
}

// wanted is the platform that stands behind what ParsePlatform returned.
func wanted(platform string) imagespec.Platform {
	if platform == "" {
		return nodePlatform()
	}
	p, err := platforms.Parse(platform)
	if err != nil { // not from ParsePlatform: nothing fits it
		return imagespec.Platform{OS: "unknown", Architecture: platform}
	}
	return p
}

// fits matches the platforms whose images serve where platform is wanted, and orders them: itself first, then older
// variants of it.
func fits(platform string) platforms.MatchComparer { return platforms.Only(wanted(platform)) }

// called names the platform for an error.
func called(platform string) string {
	if platform == "" {
		return "this node's platform " + platforms.Format(nodePlatform())
	}
	return "the platform " + platform + " of the runtime handler"
}
