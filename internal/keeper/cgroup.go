package keeper

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// cgroupName returns the name of the keeper's own cgroup: kuri-keeper, with a hash of the state
// directory unless that is the default one, so that keepers of different state directories do not
// share a cgroup.
func cgroupName(stateDir string) string {
	if stateDir == "/run/kuri" {
		return "kuri-keeper"
	}
	sum := sha256.Sum256([]byte(stateDir))
	return "kuri-keeper-" + hex.EncodeToString(sum[:4])
}

func startScope(ctx context.Context, name string, pid int) error {
	conn, err := systemd.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("reach systemd: %w", err)
	}
	defer conn.Close()
	// The scope of a killed keeper may still exist in state failed.
	_ = conn.ResetFailedUnitContext(ctx, name)
	done := make(chan string, 1)
	_, err = conn.StartTransientUnitContext(ctx, name, "fail", []systemd.Property{
		systemd.PropDescription("Kuri's keeper: the parent of its containers"),
		{Name: "PIDs", Value: dbus.MakeVariant([]uint32{uint32(pid)})},
		{Name: "DefaultDependencies", Value: dbus.MakeVariant(false)},
	}, done)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("start %s: systemd says %q", name, result)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
