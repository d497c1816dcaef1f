package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
)

// Limits are a container's limits, computed by a runtime for both versions of cgroups.
type Limits struct {
	CPUShares uint64 // for v1
	CPUWeight uint64 // for v2, the same share
	CPUQuota  int64  // microseconds per period; 0 or less for none
	CPUPeriod uint64 // microseconds; 0 for the kernel's default

	Memory     int64 // bytes; -1 for none
	MemorySwap int64 // bytes of memory and swap together; -1 for none
}

// Change is a change of limits: the files of a cgroup and the new values. It does not write them.
// It checks whether they can be written and whether they were, and restores the old values.
type Change []setting

// Changed returns the change for the requested limits in the cgroup with the directories paths by
// controller (see [Of]). l has the limits computed from them.
func Changed(paths map[string]string, asked *specs.LinuxResources, l Limits) Change {
	return Of(paths).files().change(paths, asked, l)
}

// setting is a file of a cgroup and its new value.
type setting struct {
	path string
	want string
	same func(want, got string) bool
}

// set appends a setting.
func (c *Change) set(path, want string, same func(want, got string) bool) {
	*c = append(*c, setting{path, want, same})
}

// size formats a number of bytes for files of v2; -1 means no limit.
func size(n int64) string {
	if n == -1 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// Check reads all files back. The error is of kind Precondition if the kernel has stored another
// value.
func (c Change) Check() error {
	for _, s := range c {
		if err := s.check(); err != nil {
			return err
		}
	}
	return nil
}

// check reads the file back.
func (s setting) check() error {
	got, err := os.ReadFile(s.path)
	if errors.Is(err, os.ErrNotExist) && s.want == "0" {
		return nil // the kernel does not support it and none is allowed, as with swap
	}
	if err != nil {
		return fmt.Errorf("read a limit back: %w", err)
	}
	if text := strings.TrimSpace(string(got)); !s.same(s.want, text) {
		return fault.New(fault.Precondition, "%s was set to %s, and the kernel made %q of it", filepath.Base(s.path),
			s.want, text)
	}
	return nil
}

func equal(want, got string) bool { return want == got }

// firstFields compares only the fields of want: the kernel adds a default period to a quota.
func firstFields(want, got string) bool {
	w, g := strings.Fields(want), strings.Fields(got)
	if len(g) < len(w) {
		return false
	}
	for i := range w {
		if w[i] != g[i] && !sameBytes(w[i], g[i]) {
			return false
		}
	}
	return true
}

// sameBytes compares sizes, which the kernel rounds down to pages. No limit is "max", or on v1 a
// number larger than all memory.
func sameBytes(want, got string) bool { return roundedTo(uint64(os.Getpagesize()), want, got) }

func sameHuge(pageSize string) func(want, got string) bool {
	number := strings.TrimRight(pageSize, "KMGB")
	n, _ := strconv.ParseUint(number, 10, 64)
	shift := map[string]int{"KB": 10, "MB": 20, "GB": 30}[strings.TrimPrefix(pageSize, number)]
	return func(want, got string) bool { return roundedTo(max(n<<shift, 1), want, got) }
}

func roundedTo(unit uint64, want, got string) bool {
	w, wok := byteCount(want)
	g, gok := byteCount(got)
	return wok && gok && (w == g || g <= w && w-g < unit || w >= math.MaxInt64 && g >= math.MaxInt64-unit)
}

func byteCount(s string) (uint64, bool) {
	if s == "max" {
		return math.MaxUint64, true
	}
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil
}

// sameList compares lists of CPUs or memory nodes: "0,1" equals "0-1".
func sameList(want, got string) bool {
	w, wok := expandList(want)
	g, gok := expandList(got)
	return wok && gok && slices.Equal(w, g)
}

func expandList(list string) ([]int, bool) {
	var out []int
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || to-from > 1<<16 {
			return nil, false
		}
		for n := from; n <= to; n++ {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), true
}

// Fits returns an error of kind Precondition for a memory limit below the memory in use that the
// kernel cannot reclaim. On v2 the kernel would kill the container; on v1 it would refuse the limit
// after a long time.
func (c Change) Fits() error {
	for _, s := range c {
		limit, ok := byteCount(s.want)
		usage := map[string]string{"memory.max": "memory.current",
			"memory.limit_in_bytes": "memory.usage_in_bytes"}[filepath.Base(s.path)]
		if usage == "" || !ok {
			continue
		}
		dir := filepath.Dir(s.path)
		used, err := readNumber(filepath.Join(dir, usage))
		if err != nil {
			return fmt.Errorf("read the container's memory: %w", err)
		}
		cache, err := pageCache(dir)
		if err != nil {
			return fmt.Errorf("read the container's memory: %w", err)
		}
		if used > cache && limit < used-cache {
			return fault.New(fault.Precondition,
				"a memory limit of %d bytes is below what the container uses: %d bytes, page cache not counted; nothing was changed", limit, used-cache)
		}
	}
	return nil
}

// pageCache returns the size of a memory cgroup's page cache, which the kernel can reclaim.
func pageCache(dir string) (uint64, error) {
	f, err := os.Open(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// On v1 the plain names do not count cgroups below, on v2 they do.
	counted := map[string]uint64{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		name, value, _ := strings.Cut(s.Text(), " ")
		n, err := strconv.ParseUint(value, 10, 64)
		if err == nil && strings.HasSuffix(name, "active_file") {
			counted[name] = n
		}
	}
	if _, v1 := counted["total_active_file"]; v1 {
		return counted["total_active_file"] + counted["total_inactive_file"], s.Err()
	}
	return counted["active_file"] + counted["inactive_file"], s.Err()
}

func readNumber(path string) (uint64, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(body)), 10, 64)
}

// Before returns the change that reverts c: it reads the files that will change. It leaves out
// missing files, because setting those will fail.
func (c Change) Before() (Change, error) {
	var out Change
	for _, s := range c {
		body, err := os.ReadFile(s.path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read a present limit: %w", err)
		}
		out = append(out, setting{s.path, strings.TrimSpace(string(body)), s.same})
	}
	return out, nil
}

// Restore writes the values that Before has read. Some files depend on others (the limit of memory
// and swap is never below that of memory, a quota must fit its period), so it repeats until all
// have their old values.
func (c Change) Restore() error {
	var errs []error
	for range 3 {
		errs = nil
		for _, s := range c {
			if s.check() == nil || s.want == "" && readsEmpty(s.path) {
				continue
			}
			if err := os.WriteFile(s.path, []byte(s.want+"\n"), 0); err != nil {
				errs = append(errs, err)
			} else if s.want != "" {
				errs = append(errs, s.check())
			}
		}
		if errors.Join(errs...) == nil {
			return nil
		}
	}
	return errors.Join(errs...)
}

func readsEmpty(path string) bool {
	body, err := os.ReadFile(path)
	return err == nil && strings.TrimSpace(string(body)) == ""
}
