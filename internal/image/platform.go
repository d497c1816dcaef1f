package image

import (
	"slices"
	"strings"

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

// ParsePlatform returns the platform that a runtime handler is for ("linux/arm64", "arm/v7", "linux(6.1+feature)/amd64")
// in the one spelling that the store uses: "" for what runs on this node anyway. The error is of kind Invalid.
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
	if ownMachine(p) && p.OSVersion == "" && len(p.OSFeatures) == 0 {
		return "", nil
	}
	spelled := platforms.FormatAll(p)
	if _, err := platforms.Parse(spelled); err != nil {
		return "", fault.New(fault.Invalid, "platform %q: its version or a feature has a character that cannot be", s)
	}
	return spelled, nil
}

// ownMachine tells whether p, normalized, names this node's architecture and no variant of it that must be told apart.
func ownMachine(p imagespec.Platform) bool {
	node := platforms.Normalize(platforms.DefaultSpec())
	return p.Architecture == node.Architecture && p.Variant == node.Variant
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
	if ownMachine(platforms.Normalize(p)) { // it differs by version or features alone: the best variant still
		p.Variant = nodePlatform().Variant
	}
	return p
}

// fits matches the platforms whose images serve where platform is wanted, and orders them: itself first, then older
// variants of it; of one variant, the one that needs most of the features that are wanted, then the one whose version
// (os.version) agrees best. A feature (os.features) that is not wanted is missing here, so what needs it does not fit.
func fits(platform string) platforms.MatchComparer {
	w := wanted(platform)
	return versioned{platforms.Only(w), w.OSVersion}
}

// versioned compares versions of the operating system as well, which package platforms does for Windows alone.
type versioned struct {
	platforms.MatchComparer
	version string // that is wanted; "": any
}

func (v versioned) Match(p imagespec.Platform) bool {
	return v.MatchComparer.Match(p) && v.agreement(p.OSVersion) >= 0
}

func (v versioned) Less(a, b imagespec.Platform) bool {
	switch {
	case v.MatchComparer.Less(a, b):
		return true
	case v.MatchComparer.Less(b, a):
		return false
	}
	return v.agreement(a.OSVersion) > v.agreement(b.OSVersion)
}

// agreement tells how well a version is what is wanted: -1 when it is not. Nothing orders the versions of Linux, so one
// agrees with another when they are the same as far as both go, by the dots: 6.1 with 6.1.9, not with 6.10. What names no
// version is for all; where none is wanted, that is the best.
func (v versioned) agreement(version string) int {
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

// called names the platform for an error.
func called(platform string) string {
	if platform == "" {
		return "this node's platform " + platforms.Format(nodePlatform())
	}
	return "the platform " + platform + " of the runtime handler"
}
