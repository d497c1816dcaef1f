package process

import (
	"fmt"
	"os"
	"strings"
)

// BootID returns the ID of this boot of the machine, see proc(5). Process IDs and start times of
// another boot name nothing.
func BootID() (string, error) {
	body, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot ID: %w", err)
	}
	return strings.TrimSpace(string(body)), nil
}
