package cni

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/kuri-cri/kuri/internal/fault"
)

// The result of STATUS is cached for statusFor, and may take statusLimit: kubelets ask every few seconds.
const (
	statusFor   = 5 * time.Second
	statusLimit = 10 * time.Second
)

// Ready implements [network.Network]: the node's configuration is valid, its plugins are installed,
// and their STATUS succeeds, if the configuration's version (1.1) has STATUS. Directories of
// runtime handlers do not count: the node has one condition, and a kubelet sends no pods at all to
// a node whose network is not ready. A broken handler fails its own pods.
func (c *Network) Ready(ctx context.Context) error {
	list, err := load(c.config.ConfDir)
	if err != nil {
		return err
	}
	if err := c.installed(list); err != nil {
		return err
	}
	return c.askStatus(ctx, list)
}

// Notice implements [network.Network]. Plugins report by STATUS, see Ready.
func (c *Network) Notice() string { return "" }

// installed refuses a configuration whose plugins are not all there.
func (c *Network) installed(list *libcni.NetworkConfigList) error {
	for _, p := range list.Plugins {
		if _, err := invoke.FindInPath(p.Network.Type, c.config.BinDirs); err != nil {
			return fault.New(fault.Precondition, "CNI network %s: plugin %q is not in %s; install it", list.Name, p.Network.Type,
				strings.Join(c.config.BinDirs, ", "))
		}
	}
	return nil
}

func (c *Network) askStatus(ctx context.Context, list *libcni.NetworkConfigList) error {
	c.statusMu.Lock()
	defer c.statusMu.Unlock()
	if c.statusOf == string(list.Bytes) && time.Since(c.statusAt) < statusFor {
		return c.status
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusLimit)
	defer cancel()
	err := c.cni.GetStatusNetworkList(ctx, list)
	if err != nil {
		err = fault.As(fault.Unavailable, fmt.Errorf("CNI network %s: %w", list.Name, err))
	}
	c.statusOf, c.statusAt, c.status = string(list.Bytes), time.Now(), err
	return err
}
