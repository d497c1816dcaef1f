// Package suite compares the report of a third party's ginkgo suite with a list of expectations,
// which is checked in beside the test that runs the suite. Each spec becomes a subtest.
package suite
