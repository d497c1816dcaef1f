package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kuri-cri/kuri/internal/config"
	"github.com/kuri-cri/kuri/internal/fault"
)

// pruneNetwork is "kurid network prune". It removes the bridge and the nftables table of the
// built-in network when no daemon serves, for a node that no longer uses Kuri. It takes the
// daemon's flags and configuration file.
func pruneNetwork(ctx context.Context, cfg config.Config) error {
	// a daemon serves only if the lock is taken: the holder may keep the socket open without one
	unlock, err := lock(cfg.State)
	if errors.Is(err, fault.Precondition) {
		return fault.New(fault.Precondition, "a kurid serves %s: kuri network prune asks it, or stop it first", cfg.Listen)
	}
	if err != nil {
		return err
	}
	defer unlock()
	if err := checkFormats(cfg); err != nil {
		return err
	}
	n, err := networks(cfg)
	if err != nil {
		return err
	}
	defer n.Close()
	users, err := n.Prune(ctx)
	if err != nil {
		return err
	}
	if len(users) > 0 {
		return fault.New(fault.Precondition,
			"pods have addresses of the built-in network, nothing was removed: start kurid and remove them (kuri rm --force --all): %s", strings.Join(users, ", "))
	}
	fmt.Println("the built-in network has no bridge and no nftables table on this node")
	return nil
}
