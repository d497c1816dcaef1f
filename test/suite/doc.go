// Package suite compares what a suite of somebody else, written with ginkgo, reports of its specs with a list of what must
// pass, which is checked in beside the test that runs the suite. Each spec becomes a subtest.
package suite
