// Package ipam manages the addresses of the built-in network: it chooses ranges that nothing on the
// node uses, gives each pod one address of each, and refuses host ports that another pod has.
//
// A [Pool] owns one directory with a record for each pod, <podID>.json: written before the first
// step of an attachment, removed after the last step of a detachment. [WritePodCIDR] keeps the
// node's pod CIDR in podcidr.json in a directory of the caller's. All of it survives the daemon. A
// record that cannot be read is set aside as *.damaged.
//
// A Pool has no lock; the caller's guards it (package bridge). The rest has no state.
package ipam
