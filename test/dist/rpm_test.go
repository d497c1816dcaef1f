package dist

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"testing"
)

// rpmPackage is what the header of an .rpm says.
type rpmPackage struct {
	arch  string
	files []string // absolute paths, sorted
}

// Tags and sizes of RPM's format 4, https://rpm-software-management.github.io/rpm/manual/format_v4.html.
const (
	rpmArch       = 1022
	rpmDirIndexes = 1116
	rpmBaseNames  = 1117
	rpmDirNames   = 1118

	rpmLead        = 96 // bytes before the signature header
	rpmHeaderStart = 16 // bytes of magic, version, number of entries and size of the data
	rpmEntry       = 16 // bytes of tag, type, offset and count
)

// readRPM reads the header of an .rpm. Where it is none, t fails.
func readRPM(t *testing.T, path string) (p rpmPackage) {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	signature := rpmHeader(t, body[rpmLead:])
	header := rpmHeader(t, body[rpmLead+(signature.size+7)/8*8:])
	p.arch = header.strings(rpmArch)[0]
	dirs := header.strings(rpmDirNames)
	for i, name := range header.strings(rpmBaseNames) {
		at := binary.BigEndian.Uint32(header.values[rpmDirIndexes].data[4*i:])
		p.files = append(p.files, dirs[at]+name)
	}
	slices.Sort(p.files)
	return p
}

type rpmValue struct {
	count uint32
	data  []byte // from its offset on
}

type rpmValues struct {
	size   int // of the header, bytes
	values map[uint32]rpmValue
}

func rpmHeader(t *testing.T, body []byte) rpmValues {
	t.Helper()
	if !bytes.HasPrefix(body, []byte{0x8e, 0xad, 0xe8, 1}) {
		t.Fatalf("no header of an .rpm: %x", body[:rpmHeaderStart])
	}
	entries, size := int(binary.BigEndian.Uint32(body[8:])), int(binary.BigEndian.Uint32(body[12:]))
	data := body[rpmHeaderStart+rpmEntry*entries:][:size]
	h := rpmValues{rpmHeaderStart + rpmEntry*entries + size, make(map[uint32]rpmValue)}
	for i := range entries {
		entry := body[rpmHeaderStart+rpmEntry*i:]
		h.values[binary.BigEndian.Uint32(entry)] = rpmValue{
			binary.BigEndian.Uint32(entry[12:]), data[binary.BigEndian.Uint32(entry[8:]):],
		}
	}
	return h
}

// strings returns the strings of a tag, each of which ends with a zero byte.
func (h rpmValues) strings(tag uint32) (out []string) {
	v := h.values[tag]
	for rest := v.data; len(out) < int(v.count); {
		text, after, _ := bytes.Cut(rest, []byte{0})
		out, rest = append(out, string(text)), after
	}
	return out
}
