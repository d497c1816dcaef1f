package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
)

// gcLimit bounds one GC: no pod can be attached meanwhile.
const gcLimit = 30 * time.Second

// ErrBusy is returned by GC while a pod is being attached or detached.
var ErrBusy = fault.New(fault.Unavailable, "pods are being attached or detached")

// GC runs GC of the plugins in each directory's configuration (CNI 1.1; older versions have no GC),
// which releases resources of pods that this daemon does not have. Pods whose DEL has not succeeded
// yet count as pods. It returns ErrBusy rather than wait. A configuration shared with another
// runtime of the node must have "disableGC".
func (c *Network) GC(ctx context.Context) error {
	return c.gcIn(ctx, append([]string{c.config.ConfDir}, c.config.HandlerDirs...))
}

// GCHandlers is GC for the directories of runtime handlers alone.
func (c *Network) GCHandlers(ctx context.Context) error { return c.gcIn(ctx, c.config.HandlerDirs) }

func (c *Network) gcIn(ctx context.Context, dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		err := c.gcOf(ctx, dir)
		if errors.Is(err, ErrBusy) {
			return err
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *Network) gcOf(ctx context.Context, dir string) error {
	if file, err := configFile(dir); err != nil || file == "" {
		return err
	}
	if !c.gc.TryLock() {
		return ErrBusy
	}
	defer c.gc.Unlock()
	list, err := load(dir)
	if err != nil {
		return err
	}
	ids, err := c.Attached()
	if err != nil {
		return err
	}
	valid := make([]types.GCAttachment, 0, len(ids))
	for _, id := range ids {
		_, of, err := c.kept(id)
		if errors.Is(err, fault.Corrupt) {
			return fmt.Errorf("nothing is given back while the attachment of a pod cannot be read: %w", err)
		}
		if err != nil {
			return err
		}
		if of.Name == list.Name {
			valid = append(valid, types.GCAttachment{ContainerID: id, IfName: network.Interface})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, gcLimit)
	defer cancel()
	if err := c.cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		return fault.As(fault.Unavailable, fmt.Errorf("CNI network %s: GC: %w", list.Name, err))
	}
	return nil
}

// Check asks the plugins whether the pod's network is still as they made it (CHECK, from CNI 0.4
// on). A pod that they did not attach is right.
func (c *Network) Check(ctx context.Context, podID string) error {
	c.gc.RLock()
	defer c.gc.RUnlock()
	a, list, err := c.kept(podID)
	if errors.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if !a.netnsThere() {
		return fault.New(fault.Unavailable, "CNI network %s: the pod's network namespace is not at %s any more", list.Name,
			a.Netns)
	}
	err = c.cni.CheckNetworkList(ctx, list, a.runtimeConf())
	if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
		return fault.As(fault.Unavailable, fmt.Errorf("CNI network %s: %w", list.Name, err))
	}
	return nil
}
