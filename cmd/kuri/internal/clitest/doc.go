// Package clitest has invocations of kuri and inventories of runtimes for the tests of its verbs.
package clitest
