package bridge

import (
	"crypto/sha256"
	"encoding/binary"
	"net"
	"net/netip"
)

// The hardware addresses are made from what they belong to (all locally administered, unicast). A pod that gets an IP
// address which another had before has its hardware address too, so no neighbour's cache is ever wrong; and the bridge
// keeps one address whatever joins it, by which its daemon knows it.
func podMAC(a netip.Addr) net.HardwareAddr  { return addrMAC(0x0a, a) }
func hostMAC(a netip.Addr) net.HardwareAddr { return addrMAC(0x0e, a) }
func bridgeMAC(key [32]byte) net.HardwareAddr {
	return net.HardwareAddr{0x06, key[8], key[9], key[10], key[11], key[12]}
}

func addrMAC(first byte, a netip.Addr) net.HardwareAddr {
	four := a.AsSlice()
	if len(four) > 4 {
		sum := sha256.Sum256(four)
		four = sum[:4]
	}
	return binary.BigEndian.AppendUint32(net.HardwareAddr{first, 0x4b}, binary.BigEndian.Uint32(four))
}
