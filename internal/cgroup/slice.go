package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// stopSlice stops a slice. systemd starts a slice with its first scope and would keep it forever.
// It does nothing if systemd does not know the slice, or on a node without systemd, where the slice
// is only a directory.
func stopSlice(ctx context.Context, name string) error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil
	}
	conn, err := systemd.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("stop %s: reach systemd: %w", name, err)
	}
	defer conn.Close()
	done := make(chan string, 1)
	if _, err := conn.StopUnitContext(ctx, name, "replace", done); err != nil {
		var unknown dbus.Error
		if errors.As(err, &unknown) && unknown.Name == "org.freedesktop.systemd1.NoSuchUnit" {
			return nil
		}
		return fmt.Errorf("stop %s: %w", name, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("stop %s: systemd says %q", name, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop %s: %w", name, ctx.Err())
	}
}
