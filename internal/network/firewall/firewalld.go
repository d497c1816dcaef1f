package firewall

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/godbus/dbus/v5"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/record"
)

// firewalld's D-Bus interface, as its own tools use it. The bridge is put into the zone trusted of the running
// configuration, not of its files: https://firewalld.org/documentation/man-pages/firewalld.dbus.html
const (
	BusName          = "org.fedoraproject.FirewallD1"
	BusPath          = "/org/fedoraproject/FirewallD1"
	BusZones         = BusName + ".zone"
	firewalldTrusted = "trusted"
)

const trustVersion = 1

// trustFile is the record's name.
const trustFile = "firewalld.json"

// trustRecord is the record of a request to firewalld.
type trustRecord struct {
	Interface string `json:"interface"`
	Zone      string `json:"zone"`
}

// CheckFormat returns an error of kind Precondition when a newer version of Kuri wrote the record in stateDir.
func CheckFormat(stateDir string) error {
	return record.Newer(trustVersion, stateDir, trustFile)
}

func (f *Firewall) trustPath() string { return filepath.Join(f.StateDir, trustFile) }

// trust puts the bridge into firewalld's zone trusted. opened is false if no firewalld runs, or if
// the operator has put the bridge into another zone.
func (f *Firewall) trust(ctx context.Context, bridge string) (opened bool, err error) {
	conn, err := Connect(ctx)
	if err != nil || conn == nil {
		return false, err
	}
	defer conn.Close()
	zones := conn.Object(BusName, BusPath)
	var zone string
	if err := zones.CallWithContext(ctx, BusZones+".getZoneOfInterface", 0, bridge).Store(&zone); err != nil {
		return false, fmt.Errorf("ask firewalld for the zone of %s: %w", bridge, err)
	}
	if zone != "" {
		return false, nil
	}
	if err := network.WriteRecord(f.trustPath(), trustVersion, trustRecord{bridge, firewalldTrusted}); err != nil {
		return false, err
	}
	if err := zones.CallWithContext(ctx, BusZones+".addInterface", 0, firewalldTrusted, bridge).Store(&zone); err != nil {
		return false, fmt.Errorf("put %s into firewalld's zone %s: %w", bridge, firewalldTrusted, err)
	}
	slog.Info("the bridge is in firewalld's zone trusted, until the built-in network is pruned", "bridge", bridge)
	return true, nil
}

// distrust reverts trust.
func (f *Firewall) distrust(ctx context.Context) error {
	var was trustRecord
	err := record.Read(f.trustPath(), trustVersion, &was)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dbusLimit)
	defer cancel()
	conn, err := Connect(ctx)
	if err != nil {
		return err
	}
	if conn != nil { // one that does not run has forgotten it
		defer conn.Close()
		err := conn.Object(BusName, BusPath).CallWithContext(ctx, BusZones+".removeInterface", 0, was.Zone, was.Interface).Err
		// not there any more
		if err != nil && !strings.Contains(err.Error(), "UNKNOWN_INTERFACE") &&
			!strings.Contains(err.Error(), "ZONE_CONFLICT") {
			return fmt.Errorf("take %s out of firewalld's zone %s: %w", was.Interface, was.Zone, err)
		}
	}
	if err := os.Remove(f.trustPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Connect opens a connection to the system bus, nil if firewalld is not on it.
func Connect(ctx context.Context) (*dbus.Conn, error) {
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return nil, nil // no bus, no firewalld
	}
	var there bool
	err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, BusName).Store(&there)
	if err == nil && there {
		return conn, nil
	}
	conn.Close()
	if err != nil {
		return nil, fmt.Errorf("ask the system's bus for firewalld: %w", err)
	}
	return nil, nil
}
