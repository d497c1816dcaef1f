// Package top has kuri top: samples of what pods and containers use, as a screen with keys or as tables. One goroutine owns
// the view; another asks the runtime and a third reads keys. The terminal is restored even after a panic in any of them.
package top
