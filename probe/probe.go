package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// State is the state of a check.
type State string

// The states of a check.
const (
	OK      State = "ok"
	Limited State = "limited" // the node works, but something on it would fail
	Missing State = "missing" // the node is unusable without it
	Unknown State = "unknown" // it could not be tried; see the detail
)

// Result is the result of one check.
type Result struct {
	Group  string `json:"group"`
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail"`          // findings
	Fails  string `json:"fails,omitempty"` // consequence; "" if there is none
	Mend   string `json:"mend,omitempty"`  // remedy
}

// Options are the settings of the runtime. The zero value stands for the defaults of kurid.
type Options struct {
	Root, State   string   // kurid's directories; they need not exist
	CNIConfig     string   // directory of CNI configurations
	CNIPlugins    []string // directories of CNI plugins
	NeedCNI       bool     // pods have no other network
	CgroupDriver  string   // of the runtime, "systemd" or "cgroupfs"; "" if unknown
	RuntimeSocket string   // of the runtime itself, which does not count as another runtime
	// Child is a command line of this program that calls [Inside] with its last argument, which is
	// appended. Without it, probes that need namespaces are Unknown.
	Child []string

	sys string // replaces / in tests
}

// machine has the state shared by the probes.
type machine struct {
	Options
	root      bool              // running as root
	tryDir    string            // parent of the child's directory
	inside    map[string]string // results of Inside by probe: "" or an error
	insideErr error             // why there are no results
}

// row is a check with its default texts.
type row struct {
	group, name string
	probe       func(*machine) Result
	fails, mend string // defaults for Result.Fails and Result.Mend
}

// Run runs all checks, in the order of their groups.
func Run(ctx context.Context, o Options) []Result {
	m := newMachine(ctx, o)
	var out []Result
	for _, rows := range [][]row{kernelRows, storageRows, cgroupRows, securityRows, networkRows, limitRows, nodeRows} {
		for _, r := range rows {
			out = append(out, m.check(r))
		}
	}
	return out
}

func newMachine(ctx context.Context, o Options) *machine {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&o.Root, "/var/lib/kuri")
	def(&o.State, "/run/kuri")
	def(&o.CNIConfig, "/etc/cni/net.d")
	def(&o.RuntimeSocket, "/run/kuri/kuri.sock")
	if o.CNIPlugins == nil {
		o.CNIPlugins = []string{"/opt/cni/bin"}
	}
	m := &machine{Options: o, root: os.Geteuid() == 0}
	m.inside, m.insideErr = m.runInside(ctx)
	return m
}

func (m *machine) check(r row) Result {
	res := r.probe(m)
	res.Group, res.Name = r.group, r.name
	switch {
	case res.State == OK:
		res.Fails, res.Mend = "", ""
	case res.State != Unknown:
		if res.Fails == "" {
			res.Fails = r.fails
		}
		if res.Mend == "" {
			res.Mend = r.mend
		}
	}
	return res
}

func ok(format string, args ...any) Result {
	return Result{State: OK, Detail: fmt.Sprintf(format, args...)}
}
func limited(format string, args ...any) Result {
	return Result{State: Limited, Detail: fmt.Sprintf(format, args...)}
}
func missing(format string, args ...any) Result {
	return Result{State: Missing, Detail: fmt.Sprintf(format, args...)}
}
func unknown(format string, args ...any) Result {
	return Result{State: Unknown, Detail: fmt.Sprintf(format, args...)}
}

// onlyRoot returns the result of a probe that the kernel permits only to root.
func onlyRoot() Result { return unknown("only root can try this: sudo kuri check") }

// tried turns an error into a result with bad.
func (m *machine) tried(err error, good string, bad func(string, ...any) Result) Result {
	switch {
	case err == nil:
		return ok("%s", good)
	case !m.root && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)):
		return onlyRoot()
	}
	return bad("%v", err)
}

// path returns the path of a file of the machine.
func (m *machine) path(name string) string { return filepath.Join("/", m.sys, name) }

// read returns a file of the machine without its last newline, or "" if it cannot be read.
func (m *machine) read(name string) string {
	body, err := os.ReadFile(m.path(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(body))
}

// number returns the number in a file of the machine, and false if there is none.
func (m *machine) number(name string) (int64, bool) {
	n, err := strconv.ParseInt(m.read(name), 10, 64)
	return n, err == nil
}

func (m *machine) exists(name string) bool {
	_, err := os.Stat(m.path(name))
	return err == nil
}

// existing returns the nearest existing directory: dir itself, or one above it.
func (m *machine) existing(dir string) string {
	for dir = m.path(dir); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.IsDir() || dir == "/" {
			return dir
		}
	}
}

func size(n uint64) string {
	switch {
	case n >= 1<<40:
		return fmt.Sprintf("%.1f TiB", float64(n)/(1<<40))
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
