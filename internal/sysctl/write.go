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

// Root is the directory of kernel parameters. A thread sees the parameters of its own namespaces there.
const Root = "/proc/sys"

// Values maps keys of parameters to values.
type Values map[string]string

// Of returns the values of one kind of namespace.
func (v Values) Of(ns Namespace) Values {
	out := make(Values)
	for key, value := range v {
		if _, of, err := Parse(key); err == nil && of == ns {
			out[key] = value
		}
	}
	return out
}

// DomainName returns the NIS domain name in v. It must be set with setdomainname(2) instead of
// [Values.Write], because only root of the node's user namespace can write the file.
func (v Values) DomainName() (name string, ok bool) {
	name, ok = v[domainName]
	return name, ok
}

// Keys returns the keys in the order in which they must be written: "all" interfaces come before
// single ones, because writing "all" changes each of them.
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

// Write sets the values in the calling thread's namespaces. The error is of kind Invalid if the kernel refuses a value.
// Parameters that do not exist are skipped and returned.
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

// Missing returns an error of kind Invalid for parameters that do not exist on this node, nil if keys is empty.
func Missing(keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	return fault.New(fault.Invalid,
		"kernel parameter %s does not exist on this node: a kernel module or a network interface may be missing, or "+
			"this kernel has it outside of user namespaces only", Name(keys[0]))
}

// write sets one parameter. It never creates a file.
func write(key, value string) error {
	f, err := os.OpenFile(filepath.Join(Root, key), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
