// Package top has kuri top: samples of the resource usage of pods and containers, as a screen with
// keys or as tables. One goroutine owns the view, another calls the runtime, and a third reads
// keys. The terminal is restored even after a panic in any of them.
package top
