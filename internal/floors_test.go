package internal_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/kuri-cri/kuri/"

// floors is the house of docs/architecture.md: an import goes to a lower floor. A package below one named here
// (keeper/server, keeper/api) lives with it.
var floors = map[string]int{
	"server": 4,
	"pod":    3, "image": 3, "doctor": 3,
	"spec": 2, "keeper": 2, "oci": 2, "network": 2, "layer": 2, "registry": 2, "stream": 2, "node": 2, "rootfs": 2,
	"quota": 2, "metric": 2, "verifier": 2, "listen": 2, "trace": 2,
	"namespace": 1, "holder": 1, "record": 1, "event": 1, "flight": 1, "undo": 1, "config": 1, "sha256": 1,
	"sysctl":    1,
	"process":   1,
	"cgroup":    1,
	"threads":   1,
	"idle":      1,
	"profile":   1,
	"seal":      1,
	"failpoint": 0, // of test builds
	"step":      0, // where an operation is, which its context carries through all
	"fault":     0, // the words for errors, which all speak
}

// neighbours are the imports within a floor, each with its reason.
var neighbours = map[string]string{
	"pod image":      "containers are created from images",
	"doctor pod":     "doctor compares the node with the records of pods",
	"doctor image":   "doctor compares the node with the records of images",
	"stream keeper":  "streams carry the bytes of the keeper's sessions",
	"namespace seal": "a pod's process 1 runs this program",
	"keeper oci":     "the keeper runs containers through an OCI runtime",
	"metric network": "network metrics come from a pod's links",
	"node spec":      "spec defines the facts that it needs about the node",
	"rootfs spec":    "spec defines what it needs from a root filesystem",

	"cgroup process":   "the error for a cgroup that does not empty names a process",
	"namespace sysctl": "a new namespace gets its kernel parameters",
}

// insideFloors are the floors within rooms that have packages of their own: here too an import goes to a lower floor.
var insideFloors = map[string]int{
	"network/selector": 3,
	"network/bridge":   2, "network/cni": 2,
	"network/networktest": 2, // for tests
	"network/conntrack":   1, "network/firewall": 1, "network/ipam": 1, "network/nft": 1,
	"network":      0, // the interface and its words
	"network/link": 0, "network/netns": 0,
}

// criSpeakers may use the messages of the CRI; further in, a field of the API is a field of ours.
var criSpeakers = []string{"internal/server", "internal/pod", "internal/spec", "internal/rootfs", "client", "cmd/kuri",
	"test", "bench"}

type pkg struct {
	ImportPath    string
	Imports, Deps []string
}

// name is the package's path in the module.
func (p pkg) name() string { return strings.TrimPrefix(p.ImportPath, module) }

func TestFloors(t *testing.T) {
	for _, p := range list(t) {
		for _, path := range p.Imports {
			if err := check(p.name(), path); err != nil {
				t.Errorf("%s imports %s: %v", p.name(), strings.TrimPrefix(path, module), err)
			}
		}
		for _, path := range p.Deps {
			if err := checkLinked(p.name(), path); err != nil {
				t.Errorf("%s links %s: %v", p.name(), strings.TrimPrefix(path, module), err)
			}
		}
	}
}

// check returns why the package named from must not import path.
func check(from, path string) error {
	if path == "k8s.io/cri-api/pkg/apis/runtime/v1" &&
		!slices.ContainsFunc(criSpeakers, func(p string) bool { return within(from, p) }) {
		return errors.New("cri-api's types stop at server, pod, spec, rootfs and client, so that what lies below does not change with the API")
	}
	to, ours := strings.CutPrefix(path, module)
	if !ours {
		return nil
	}
	switch {
	case within(from, "client") && within(to, "internal"):
		return errors.New("client is for other programs and any runtime, and takes nothing of the daemon's")
	case within(from, "probe") && within(to, "internal"):
		return errors.New("probe is the one eye of kuri and kurid on the node, and needs neither")
	case (within(from, "certsd") || within(from, "challenge")) && within(to, "internal"):
		return fmt.Errorf("%s is shared by kuri and kurid, and needs neither", from)
	case within(from, "spelling") && to != "":
		return errors.New("spelling is shared by kuri and kurid, and imports nothing of either")
	case within(from, "cmd/kuri") && within(to, "internal"):
		return errors.New("kuri is a CRI client like any other and sees the daemon through client alone")
	case (within(from, "test") || within(from, "bench") || within(from, "examples")) && within(to, "internal"):
		return errors.New("tests from outside drive the programs, not their packages")
	case within(to, "internal/config") && from != "cmd/kurid" && from != "internal/config":
		return errors.New("cmd/kurid alone reads the configuration and hands each package its part")
	case within(from, "internal") && (within(to, "client") || within(to, "cmd") || within(to, "test") ||
		within(to, "bench")):
		return errors.New("the daemon's packages need nothing of what is built on them")
	case within(from, "internal") && within(to, "internal"):
		if room(from) == room(to) {
			return checkInside(strings.TrimPrefix(from, "internal/"), strings.TrimPrefix(to, "internal/"))
		}
		return checkFloor(room(from), room(to))
	}
	return nil
}

// checkFloor compares the floors of two packages directly below internal/.
func checkFloor(from, to string) error {
	above, known := floors[from]
	if !known {
		return fmt.Errorf("%s has no floor yet: give it one in internal/floors_test.go and in docs/architecture.md", from)
	}
	below, known := floors[to]
	if !known {
		return fmt.Errorf("%s has no floor yet: give it one in internal/floors_test.go and in docs/architecture.md", to)
	}
	if below < above || neighbours[from+" "+to] != "" {
		return nil
	}
	return fmt.Errorf("imports must point down: %s is on floor %d, %s on floor %d; an import within a floor needs a reason in neighbours", from, above, to, below)
}

// checkInside compares the floors of two packages of one room, if insideFloors has the room.
func checkInside(from, to string) error {
	if _, listed := insideFloors[room(from)]; !listed {
		return nil
	}
	for _, name := range []string{from, to} {
		if _, known := insideFloors[name]; !known {
			return fmt.Errorf("%s has no floor yet: give it one in insideFloors of internal/floors_test.go", name)
		}
	}
	if insideFloors[to] < insideFloors[from] {
		return nil
	}
	return fmt.Errorf("imports must point down: %s is on floor %d of its room, %s on floor %d", from, insideFloors[from],
		to, insideFloors[to])
}

// checkLinked returns why the program or package named from must not link path, directly or not.
func checkLinked(from, path string) error {
	switch {
	case from == "cmd/kurid" && strings.HasPrefix(path, "github.com/opencontainers/runc/libcontainer"):
		return errors.New("containers are started by the keeper; libcontainer's C code runs before main in whatever links it")
	case from == "cmd/kuri-keeper" && (path == "google.golang.org/grpc" || strings.HasPrefix(path, "k8s.io/")):
		return errors.New("what the keeper links stays in memory on every node; it speaks ttrpc and knows nothing of the CRI")
	case from == "cmd/kuri" && strings.HasPrefix(path, module+"internal/"):
		return errors.New("kuri is a CRI client like any other and sees the daemon through client alone")
	}
	return nil
}

// room is the first element of a path below internal/.
func room(name string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(name, "internal/"), "/")
	return first
}

func within(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

// list returns every package of the module.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-tags", "seccomp", "-json=ImportPath,Imports,Deps", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		t.Fatalf("%s: %v", cmd, err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := d.Decode(&p)
		if err == io.EOF {
			return pkgs
		}
		if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestCheckRefuses(t *testing.T) {
	for _, test := range []struct{ from, to, why string }{
		{"internal/layer", module + "internal/image", "imports must point down"},
		{"internal/image", module + "internal/pod", "imports must point down"},
		{"internal/pod", module + "internal/config", "cmd/kurid alone"},
		{"internal/layer", "k8s.io/cri-api/pkg/apis/runtime/v1", "cri-api's types stop"},
		{"client", module + "internal/fault", "takes nothing of the daemon's"},
		{"probe", module + "internal/node", "needs neither"},
		{"cmd/kuri", module + "internal/pod", "through client alone"},
		{"internal/pod", module + "internal/newcomer", "no floor yet"},
		{"internal/network/nft", module + "internal/network/bridge", "imports must point down"},
		{"internal/network/bridge", module + "internal/network/cni", "imports must point down"},
		{"internal/network/bridge", module + "internal/network/newcomer", "no floor yet"},
	} {
		if err := check(test.from, test.to); err == nil || !strings.Contains(err.Error(), test.why) {
			t.Errorf("check(%q, %q) = %v, want something with %q", test.from, test.to, err, test.why)
		}
	}
	for _, good := range [][2]string{
		{"internal/server", module + "internal/pod"}, {"internal/pod", module + "internal/image"},
		{"internal/network/bridge", module + "internal/network"}, {"internal/keeper/server", module + "internal/keeper"},
		{"internal/pod", "k8s.io/cri-api/pkg/apis/runtime/v1"}, {"cmd/kurid", module + "internal/config"},
	} {
		if err := check(good[0], good[1]); err != nil {
			t.Errorf("check(%q, %q) = %v, want nil", good[0], good[1], err)
		}
	}
}
