package keeper

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// cgroupName is the name of the keeper's own cgroup: kuri-keeper, with a hash of the state directory when that is not
// the usual one, so that keepers side by side do not share one.
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
	// A scope of a killed keeper may be there in state failed.
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
