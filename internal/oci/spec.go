package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
)

// ReadSpec reads config.json of a bundle. The error is of kind Invalid if no runtime can run it.
func ReadSpec(bundle string) (*specs.Spec, error) {
	return readSpec(bundle, func(encoded []byte) (*specs.LinuxSeccomp, error) {
		var profile *specs.LinuxSeccomp
		return profile, json.Unmarshal(encoded, &profile)
	})
}

// specWithProfile is a specification whose seccomp profile is not decoded.
type specWithProfile struct {
	specs.Spec
	Linux *struct {
		specs.Linux
		Seccomp json.RawMessage `json:"seccomp"`
	} `json:"linux"`
}

// readSpec reads config.json of a bundle, and decodes the seccomp profile with a function.
func readSpec(bundle string, decode func([]byte) (*specs.LinuxSeccomp, error)) (*specs.Spec, error) {
	path := filepath.Join(bundle, "config.json")
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.Invalid, "read the bundle: %w", err)
	}
	var whole specWithProfile
	err = json.Unmarshal(body, &whole)
	spec := &whole.Spec
	if err == nil && whole.Linux != nil {
		spec.Linux = &whole.Linux.Linux
		if len(whole.Linux.Seccomp) > 0 {
			spec.Linux.Seccomp, err = decode(whole.Linux.Seccomp)
		}
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "decode %s: %w", path, err)
	}
	switch {
	case spec.Root == nil || !filepath.IsAbs(spec.Root.Path):
		return nil, fault.New(fault.Invalid, "%s: root.path is not an absolute path", path)
	case spec.Process == nil || len(spec.Process.Args) == 0:
		return nil, fault.New(fault.Invalid, "%s: process.args is empty", path)
	case spec.Linux == nil:
		return nil, fault.New(fault.Invalid, "%s: linux is missing", path)
	}
	return spec, nil
}

// startable returns an error of kind Unstartable if no kernel can start a process with these
// arguments in this working directory.
func startable(p *specs.Process) error {
	hasNUL := func(s string) bool { return strings.ContainsRune(s, 0) }
	switch {
	case p.Args[0] == "":
		return fault.New(fault.Unstartable, "exec: the name of the program is empty")
	case slices.ContainsFunc(p.Args, hasNUL):
		return fault.New(fault.Unstartable, "exec: %.100q contains a NUL byte, which no program can be given", p.Args)
	case !filepath.IsAbs(p.Cwd) || hasNUL(p.Cwd):
		return fault.New(fault.Unstartable, "the working directory %q is not an absolute path", p.Cwd)
	}
	return nil
}

var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// memlock is RLIMIT_MEMLOCK as this program was started with it.
var memlock = func() (limit unix.Rlimit) {
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	}
	return limit
}()

// limitsOf returns the resource limits of p, always with RLIMIT_MEMLOCK: the package cgroups sets it
// to unlimited for the whole program before it loads the program of a device cgroup (version 2).
func limitsOf(p *specs.Process) []specs.POSIXRlimit {
	if slices.ContainsFunc(p.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_MEMLOCK" }) {
		return p.Rlimits
	}
	return append(slices.Clip(p.Rlimits), specs.POSIXRlimit{Type: "RLIMIT_MEMLOCK", Soft: memlock.Cur, Hard: memlock.Max})
}

// processOf converts p to libcontainer's process.
func processOf(p *specs.Process) (*libcontainer.Process, error) {
	lp := &libcontainer.Process{
		Args:            withRawEnv(p.Args, p.Env),
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		AppArmorProfile: p.ApparmorProfile,
		NoNewPrivileges: &p.NoNewPrivileges,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
	}
	for _, gid := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(gid))
	}
	if size := p.ConsoleSize; size != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(size.Width), uint16(size.Height)
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, l := range limitsOf(p) {
		number, ok := rlimits[l.Type]
		if !ok {
			return nil, fault.New(fault.Invalid, "unknown resource limit %q", l.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: number, Hard: l.Hard, Soft: l.Soft})
	}
	affinity, err := configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	if err != nil {
		return nil, fmt.Errorf("process.execCPUAffinity: %w", err)
	}
	lp.CPUAffinity = affinity
	return lp, nil
}
