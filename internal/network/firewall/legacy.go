package firewall

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// legacy is an iptables that is not nftables: its tables are read by getsockopt. The numbers are those of the kernel's
// linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h and linux/netfilter/x_tables.h.
type legacy struct {
	program string
	names   string // file that lists the tables that are in use
	family  int
	level   int // of getsockopt
	fixed   int // bytes of an entry before its matches
	ip      int // bytes of what an entry says of addresses, which it begins with
	address int // bytes of an address
	goTo    byte
}

var (
	legacy4 = legacy{"iptables-legacy", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.IPPROTO_IP, 112, 84,
		4, 0x02}
	legacy6 = legacy{"ip6tables-legacy", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.IPPROTO_IPV6, 168,
		136, 16, 0x04}
)

const (
	legacyInfo    = 64 // IPT_SO_GET_INFO, IP6T_SO_GET_INFO
	legacyEntries = 65 // IPT_SO_GET_ENTRIES, IP6T_SO_GET_ENTRIES
	legacyName    = 32 // XT_TABLE_MAXNAMELEN
	legacyForward = 2  // NF_INET_FORWARD
	legacyNotIn   = 1  // IPT_INV_VIA_IN
	legacyNotOut  = 2  // IPT_INV_VIA_OUT
	maxLegacy     = 64 << 20
)

// legacyTable is the beginning of struct ipt_getinfo.
type legacyTable struct {
	Name      [legacyName]byte
	Valid     uint32
	Hooks     [5]uint32 // where the chain of each hook begins, in bytes
	Underflow [5]uint32
	Count     uint32
	Size      uint32 // of the entries, in bytes
}

// dropsFrom reports whether the table's chain FORWARD drops what comes from the bridge.
func (l legacy) dropsFrom(bridge string) (bool, error) {
	// Not before it is known to be there: the kernel makes a table that is asked for.
	if used, err := l.used(); !used {
		return false, err
	}
	table, entries, err := l.read()
	if err != nil {
		return false, fmt.Errorf("read the table filter of %s: %w", l.program, err)
	}
	if table.Valid&(1<<legacyForward) == 0 {
		return false, nil
	}
	w := walk{rules: func(at string) ([]step, error) { return l.steps(entries, at, bridge) }, known: map[string]fate{}}
	end, err := w.fateIn(strconv.Itoa(int(table.Hooks[legacyForward])), 0)
	return end == dropped, err
}

// used reports whether there is a table filter.
func (l legacy) used() (bool, error) {
	tables, err := os.ReadFile(l.names)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return slices.Contains(strings.Fields(string(tables)), "filter"), err
}

// read gets the table's entries. If another process changes the table meanwhile, the kernel returns EAGAIN.
func (l legacy) read() (legacyTable, []byte, error) {
	var table legacyTable
	fd, err := unix.Socket(l.family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return table, nil, err
	}
	defer unix.Close(fd)
	head := make([]byte, binary.Size(table))
	for range 10 {
		clear(head)
		copy(head, "filter")
		if err := getsockopt(fd, l.level, legacyInfo, head); err != nil {
			return table, nil, err
		}
		if _, err := binary.Decode(head, binary.NativeEndian, &table); err != nil {
			return table, nil, err
		}
		if table.Size > maxLegacy {
			return table, nil, fmt.Errorf("it has %d bytes", table.Size)
		}
		// struct ipt_get_entries: the name, the size, and the entries, which begin at a multiple of eight.
		body := make([]byte, legacyName+8+int(table.Size))
		copy(body, "filter")
		binary.NativeEndian.PutUint32(body[legacyName:], table.Size)
		switch err = getsockopt(fd, l.level, legacyEntries, body); {
		case err == nil:
			return table, body[legacyName+8:], nil
		case !errors.Is(err, unix.EAGAIN):
			return table, nil, err
		}
	}
	return table, nil, err
}

// getsockopt is for options whose value is read and written: golang.org/x/sys/unix has none of this shape.
func getsockopt(fd, level, option int, value []byte) error {
	size := uint32(len(value))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

var errLegacy = errors.New("the kernel's answer is not as expected")

// steps reads the rules from an offset on. A chain ends with a rule for everything, so no step of
// the next one is taken.
func (l legacy) steps(entries []byte, from, bridge string) ([]step, error) {
	at, err := strconv.Atoi(from)
	if err != nil || at < 0 {
		return nil, errLegacy
	}
	var steps []step
	for at < len(entries) {
		e := entries[at:]
		if len(e) < l.fixed {
			return nil, errLegacy
		}
		target, next := int(binary.NativeEndian.Uint16(e[l.ip+4:])), int(binary.NativeEndian.Uint16(e[l.ip+6:]))
		if target < l.fixed || next < target+legacyName || next > len(e) {
			return nil, errLegacy
		}
		e = e[:next]
		// A rule that only counts "jumps" to what follows.
		if s, ok := l.target(e, target); ok && s.to != strconv.Itoa(at+next) && l.fromBridge(e[:target], bridge) {
			steps = append(steps, s)
			if s.fate != undecided || s.to == "" || s.last {
				break
			}
		}
		at += next
	}
	return steps, nil
}

// target returns the effect of a rule. Offsets and verdicts are those of struct xt_standard_target.
func (l legacy) target(e []byte, at int) (s step, ok bool) {
	name, _, _ := bytes.Cut(e[at+2:at+2+29], []byte{0}) // XT_EXTENSION_MAXNAMELEN
	switch string(name) {
	case "REJECT":
		return step{fate: dropped}, true
	case "": // the standard one
		if len(e) < at+legacyName+4 {
			return step{}, false
		}
		switch verdict := int32(binary.NativeEndian.Uint32(e[at+legacyName:])); {
		case verdict >= 0:
			return step{to: strconv.Itoa(int(verdict)), last: e[l.flags()]&l.goTo != 0}, true
		case verdict == -1: // -NF_DROP-1
			return step{fate: dropped}, true
		case verdict == -2: // -NF_ACCEPT-1
			return step{fate: passes}, true
		case verdict == -5: // XT_RETURN
			return step{}, true
		}
	}
	return step{}, false // it logs or marks, or heads a chain
}

// flags is where an entry has its flags; what it inverts stands behind them.
func (l legacy) flags() int {
	if l.family == unix.AF_INET6 {
		return 4*l.address + 4*unix.IFNAMSIZ + 3
	}
	return 4*l.address + 4*unix.IFNAMSIZ + 2
}

// fromBridge reports whether a rule is about every packet from the bridge. The entry begins with
// two addresses, their two masks, the names of two links, their two masks, and the protocol.
func (l legacy) fromBridge(e []byte, bridge string) bool {
	masks := e[2*l.address : 4*l.address]
	links := e[4*l.address:]
	in, out := links[:unix.IFNAMSIZ], links[unix.IFNAMSIZ:2*unix.IFNAMSIZ]
	inMask, outMask := links[2*unix.IFNAMSIZ:3*unix.IFNAMSIZ], links[3*unix.IFNAMSIZ:4*unix.IFNAMSIZ]
	protocol, flags, inverted := binary.NativeEndian.Uint16(links[4*unix.IFNAMSIZ:]), e[l.flags()]&^l.goTo, e[l.flags()+1]
	if !zero(masks) || protocol != 0 || flags != 0 || inverted&^(legacyNotIn|legacyNotOut) != 0 {
		return false
	}
	comes := sameLink(in, inMask, bridge) != (inverted&legacyNotIn != 0)
	elsewhere := zero(outMask) || inverted&legacyNotOut != 0 && sameLink(out, outMask, bridge)
	return comes && elsewhere && l.onlyComments(e[l.fixed:])
}

// sameLink reports whether a rule's name of a link, as far as its mask goes, is that of the bridge.
func sameLink(name, mask []byte, bridge string) bool {
	ours := make([]byte, unix.IFNAMSIZ)
	copy(ours, bridge)
	for i := range ours {
		if (ours[i]^name[i])&mask[i] != 0 {
			return false
		}
	}
	return true
}

// onlyComments reports whether the matches of a rule, each a struct xt_entry_match, are comments.
func (l legacy) onlyComments(matches []byte) bool {
	for len(matches) > 0 {
		if len(matches) < legacyName {
			return false
		}
		size := int(binary.NativeEndian.Uint16(matches))
		name, _, _ := bytes.Cut(matches[2:2+29], []byte{0})
		if size < legacyName || size > len(matches) || string(name) != "comment" {
			return false
		}
		matches = matches[size:]
	}
	return true
}

func zero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}
