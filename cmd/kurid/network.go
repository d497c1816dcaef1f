package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kuri-cri/kuri/internal/config"
	"github.com/kuri-cri/kuri/internal/fault"
)

// pruneNetwork is "kurid network prune", for a node that Kuri leaves: it takes away the bridge and the nftables table of
// the built-in network while no daemon serves. It takes the flags and the file that the daemon would take.
func pruneNetwork(ctx context.Context, cfg config.Config) error {
	unlock, err := lock(cfg.State) // the socket is open also while no daemon serves
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
		return fault.New(fault.Precondition, "pods have addresses of the built-in network, nothing was taken away: start kurid and remove them (kuri rm --force --all): %s", strings.Join(users, ", "))
	}
	fmt.Println("the built-in network has no bridge and no nftables table on this node")
	return nil
}
