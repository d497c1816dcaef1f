package server

import (
	"encoding/binary"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// event encodes an event of inotify(7).
func event(mask uint32, name string) []byte {
	padded := make([]byte, (len(name)+16)/16*16)
	copy(padded, name)
	if name == "" {
		padded = nil
	}
	b := binary.NativeEndian.AppendUint32(nil, 1) // the watch
	b = binary.NativeEndian.AppendUint32(b, mask)
	b = binary.NativeEndian.AppendUint32(b, 0) // the cookie
	return append(binary.NativeEndian.AppendUint32(b, uint32(len(padded))), padded...)
}

func TestTellsOfOurs(t *testing.T) {
	s := &Server{state: "/state", parent: &parent{}}
	for _, tt := range []struct {
		mask uint32
		name string
		want bool
	}{
		{unix.IN_DELETE, "keeper.sock", true},
		{unix.IN_DELETE, "holder.lock", true},
		{unix.IN_DELETE, "lock", true},
		{unix.IN_MOVED_FROM, "keeper", true},
		{unix.IN_DELETE, "mounts", true},
		{unix.IN_DELETE, "sandboxes", true},
		{unix.IN_DELETE, "containers", true},
		{unix.IN_DELETE, "execs", true},
		{unix.IN_DELETE, "keeper.log", false},
		{unix.IN_DELETE, "kurid.sock", false},
		{unix.IN_DELETE_SELF, "", true},
		{unix.IN_Q_OVERFLOW, "", true},
	} {
		events := slices.Concat(event(unix.IN_DELETE, "take-over.json"), event(tt.mask, tt.name))
		if got := s.tellsOfOurs(events); got != tt.want {
			t.Errorf("mask %#x, name %q: %t", tt.mask, tt.name, got)
		}
	}
}
