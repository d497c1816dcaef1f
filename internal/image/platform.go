package image

import (
	"github.com/containerd/platforms"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/cpu"
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

// runsHere matches the platforms whose images run on this node, and orders them: the node's own first, then older
// variants of it.
func runsHere() platforms.MatchComparer { return platforms.Only(nodePlatform()) }
