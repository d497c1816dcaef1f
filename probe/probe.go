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

// State says how far the machine has what a check asks for.
type State string

// The states of a check.
const (
	OK      State = "ok"
	Limited State = "limited" // the node works, and something on it would fail
	Missing State = "missing" // the node is of no use without it
	Unknown State = "unknown" // it could not be tried; the detail says why
)

// Result is one check and how it ended.
type Result struct {
	Group  string `json:"group"`
	Name   string `json:"name"`
	State  State  `json:"state"`
	Detail string `json:"detail"`          // what was found
	Fails  string `json:"fails,omitempty"` // what would fail; "" when nothing does
	Mend   string `json:"mend,omitempty"`  // what to do about it
}

// Options say which places are meant. The zero value means those that kurid has without a configuration.
type Options struct {
	Root, State   string   // kurid's directories; they need not exist
	CNIConfig     string   // directory of CNI configurations
	CNIPlugins    []string // directories of CNI plugins
	NeedCNI       bool     // pods have no other network
	CgroupDriver  string   // of the runtime, "systemd" or "cgroupfs"; "" when it is not known
	RuntimeSocket string   // of the runtime that is meant: it is no other runtime
	// Child is a command line of this program that calls [Inside] with its last argument, which is added. Without it
	// what needs namespaces is Unknown.
	Child []string

	sys string // in place of /, for tests
}

// machine is what the probes share.
type machine struct {
	Options
	root      bool              // we are root
	tryDir    string            // where the child made its directory
	inside    map[string]string // what Inside found: "" or an error's text, by probe
	insideErr error             // why there is nothing
}

// row is a check: its words, and what finds out.
type row struct {
	group, name string
	probe       func(*machine) Result
	fails, mend string // unless the probe says it better
}

// Run makes all checks, in the order of their groups.
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

// onlyRoot is the result where the kernel refuses others than root.
func onlyRoot() Result { return unknown("only root can try this: sudo kuri check") }

// tried turns an error into a result: bad says which.
func (m *machine) tried(err error, good string, bad func(string, ...any) Result) Result {
	switch {
	case err == nil:
		return ok("%s", good)
	case !m.root && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)):
		return onlyRoot()
	}
	return bad("%v", err)
}

// path returns where a file of the machine is.
func (m *machine) path(name string) string { return filepath.Join("/", m.sys, name) }

// read returns a file of the machine without its last newline, "" when it cannot be read.
func (m *machine) read(name string) string {
	body, err := os.ReadFile(m.path(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(body))
}

// number returns what a file of the machine holds, false when that is no number.
func (m *machine) number(name string) (int64, bool) {
	n, err := strconv.ParseInt(m.read(name), 10, 64)
	return n, err == nil
}

func (m *machine) exists(name string) bool {
	_, err := os.Stat(m.path(name))
	return err == nil
}

// existing returns the nearest directory that exists: dir itself, or one above it.
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
