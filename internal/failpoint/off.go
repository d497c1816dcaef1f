//go:build !failpoint

package failpoint

// Arm has no effect in this build.
func Arm(string) {}

// At has no effect in this build.
func At(string) {}
