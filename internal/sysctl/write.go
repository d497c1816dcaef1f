package sysctl

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Root is where the kernel has its parameters. Those of a namespace are what a thread in it sees there.
const Root = "/proc/sys"

// Values are parameters by their keys.
type Values map[string]string

// Of returns the values that belong to one kind of namespace.
func (v Values) Of(ns Namespace) Values {
	out := make(Values)
	for key, value := range v {
		if _, of, err := Parse(key); err == nil && of == ns {
			out[key] = value
		}
	}
	return out
}

// DomainName returns the NIS domain name that is to be set. It is set by setdomainname(2) and not by [Values.Write]: the
// file is writable for the root of the node's user namespace alone.
func (v Values) DomainName() (name string, ok bool) {
	name, ok = v[domainName]
	return name, ok
}

// Keys returns the keys in the order in which they are to be written: what is about one network interface comes last, and
// before it what is about all of them, for writing that changes each.
func (v Values) Keys() []string {
	rank := func(key string) int {
		switch interfaceOf(key) {
		case "":
			return 0
		case "all":
			return 1
		case "default":
			return 2
		}
		return 3
	}
	return slices.SortedFunc(maps.Keys(v), func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
}

// Write sets the values in the calling thread's namespaces. A value that the kernel does not take is an error of kind
// Invalid. Parameters that do not exist are left out and returned.
func (v Values) Write() (missing []string, err error) {
	for _, key := range v.Keys() {
		err := write(key, v[key])
		if errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, key)
			continue
		}
		if err != nil {
			return missing, fault.New(fault.Invalid, "set kernel parameter %s to %q: %w", Name(key), v[key], err)
		}
	}
	return missing, nil
}

// Missing is the error of kind Invalid for parameters that this node's kernel does not have, nil for none.
func Missing(keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "kernel parameter %s does not exist on this node: a kernel module or a network interface may be missing", Name(keys[0]))
}

// write sets one parameter. It never makes a file, and reports what the kernel said.
func write(key, value string) error {
	f, err := os.OpenFile(filepath.Join(Root, key), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
