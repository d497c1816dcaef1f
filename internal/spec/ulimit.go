package spec

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Annotations of a pod that set the ulimits of its containers' processes (setrlimit(2)). The first
// applies to all containers, the second, which ends with a container's name, to that one. Kubelets
// pass a pod's annotations to the sandbox.
const (
	ulimitsAnnotation   = "kuri-cri.io/ulimits"
	ulimitsOfAnnotation = "ulimits.kuri-cri.io/"
)

// Ulimits are process limits by the names of getrlimit(2), such as "RLIMIT_NOFILE"; math.MaxUint64
// is unlimited.
type Ulimits map[string]Ulimit

// Ulimit is a process limit: the soft limit is in force, and the process may raise it up to the
// hard one.
type Ulimit struct{ Soft, Hard uint64 }

// UlimitNames returns the names that ParseUlimits accepts.
func UlimitNames() []string {
	return []string{
		"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
		"rss", "rtprio",
		"rttime", "sigpending", "stack",
	}
}

// ParseUlimits parses a list such as "nofile=1024:4096,core=0,memlock=unlimited": a name, a soft
// limit, and the hard limit if it differs. Units are those of setrlimit(2). The error is of kind
// Invalid and names field.
func ParseUlimits(field, list string) (Ulimits, error) {
	out := make(Ulimits)
	for one := range strings.SplitSeq(list, ",") {
		one = strings.TrimSpace(one)
		if one == "" {
			continue
		}
		name, value, ok := strings.Cut(one, "=")
		name = strings.ToLower(name)
		if !ok || !slices.Contains(UlimitNames(), name) {
			return nil, invalid(field, "%q is not NAME=SOFT[:HARD] with a NAME of %s", one,
				strings.Join(UlimitNames(), ", "))
		}
		soft, hard, two := strings.Cut(value, ":")
		if !two {
			hard = soft
		}
		var u Ulimit
		var err1, err2 error
		u.Soft, err1 = parseLimit(soft)
		u.Hard, err2 = parseLimit(hard)
		if err1 != nil || err2 != nil {
			return nil, invalid(field, "%q: a limit is a number or \"unlimited\"", one)
		}
		if u.Soft > u.Hard {
			return nil, invalid(field, "%q: the soft limit is above the hard one", one)
		}
		out["RLIMIT_"+strings.ToUpper(name)] = u
	}
	return out, nil
}

func parseLimit(s string) (uint64, error) {
	if s == "unlimited" || s == "-1" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// ulimits sets the limits of the configuration, changed by the pod's annotations. An annotation
// must not raise a hard limit above the container's default: the author of a pod does not
// administer the node.
func (t *translation) ulimits() error {
	limits := maps.Clone(t.in.Ulimits)
	if limits == nil {
		limits = make(Ulimits)
	}
	for name, u := range limits {
		if node, ok := t.in.Node.Ulimits[name]; ok && u.Hard > node.Hard &&
			!slices.Contains(t.in.Node.Capabilities, "CAP_SYS_RESOURCE") {
			return unsupported("ulimits", "the configuration sets the hard limit of %s to %d; kurid itself has %d, "+
				"and no "+
				"CAP_SYS_RESOURCE to raise it", name, u.Hard, node.Hard)
		}
	}
	for _, key := range []string{ulimitsAnnotation, ulimitsOfAnnotation + t.in.Container.GetMetadata().GetName()} {
		field := "annotations[" + key + "] of the pod"
		asked, err := ParseUlimits(field, t.in.Pod.GetAnnotations()[key])
		if err != nil {
			return err
		}
		for name, u := range asked {
			most, ok := t.in.Ulimits[name]
			if !ok {
				most, ok = t.in.Node.Ulimits[name]
			}
			if ok && u.Hard > most.Hard {
				return invalid(field, "%s can be %d at most here; the node's administrator can raise it (pod.ulimits "+
					"in Kuri's configuration)", name, most.Hard)
			}
			limits[name] = u
		}
	}
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		t.spec.Process.Rlimits = append(t.spec.Process.Rlimits,
			specs.POSIXRlimit{Type: name, Soft: limits[name].Soft, Hard: limits[name].Hard})
	}
	return nil
}
