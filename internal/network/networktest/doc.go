// Package networktest is for the tests of the networks: [Conformance] is what every network.Network
// must do, and [Main] runs a test program in network and mount namespaces of its own, so that the
// machine is not touched.
package networktest
