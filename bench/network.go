package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// way is a network that a runtime can give to a pod.
type way struct {
	name string // in the report
	host bool   // the node's network
	cni  bool   // through the CNI plugins; containerd has no other
}

var (
	hostNetwork = way{name: "host network", host: true}
	builtIn     = way{name: "built-in network"}
	plugins     = way{name: "CNI plugins", cni: true}
)

// ways lists the networks of a runtime other than the node's.
func (d *daemon) ways() []way {
	if d.name == "kuri" {
		return []way{builtIn, plugins}
	}
	return []way{plugins}
}

// choose selects the network of later pods. Kuri reads its CNI configuration for each pod.
func (d *daemon) choose(w way) error {
	if d.name != "kuri" {
		return nil
	}
	if w.cni {
		return os.WriteFile(d.cniFile, []byte(d.cniList), 0o644)
	}
	if err := os.Remove(d.cniFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// networkPhase measures the network's part of RunPodSandbox with sandboxes on the node's network
// and on one of their own alternately, one at a time. It also measures the time for many concurrent
// sandboxes, until all have addresses.
func (b *bench) networkPhase(ctx context.Context) error {
	if err := b.freshAll(ctx); err != nil {
		return err
	}
	for round := range b.rounds {
		for _, d := range b.runtimes {
			for _, w := range d.ways() {
				if err := b.shareRound(ctx, d, w, round); err != nil {
					return fmt.Errorf("%s, %s: %w", d.name, w.name, err)
				}
			}
		}
	}
	for round := range min(b.rounds, 3) {
		for _, d := range b.runtimes {
			for _, w := range d.ways() {
				if err := b.addressesRound(ctx, d, w, round); err != nil {
					return fmt.Errorf("%s, %s: %w", d.name, w.name, err)
				}
			}
		}
	}
	return nil
}

// shareRound runs pairs of sandboxes, each removed before the next starts.
func (b *bench) shareRound(ctx context.Context, d *daemon, w way, round int) error {
	if err := d.choose(w); err != nil {
		return err
	}
	if err := sleep(ctx, turn); err != nil {
		return err
	}
	// The held pod keeps the bridge up, as on a node with pods.
	held, err := d.client.sandbox(ctx, b.request(d, fmt.Sprintf("held-%d", round), false))
	if err != nil {
		return err
	}
	took := map[way][]float64{}
	var down []float64
	for n := range b.pods / b.rounds {
		for _, one := range []way{hostNetwork, w} {
			begin := time.Now()
			id, err := d.client.sandbox(ctx, b.request(d, fmt.Sprintf("share-%d-%d", round, n), one.host))
			if err != nil {
				return err
			}
			took[one] = append(took[one], milliseconds(time.Since(begin)))
			begin = time.Now()
			if err := d.client.removeSandbox(ctx, id); err != nil {
				return err
			}
			if !one.host {
				down = append(down, milliseconds(time.Since(begin)))
			}
			if err := sleep(ctx, 50*time.Millisecond); err != nil { // as on a node where pods are started one by one
				return err
			}
		}
	}
	row := func(name string, values ...float64) {
		for _, v := range values {
			b.report.add(name, "ms", d.name, round, v)
		}
	}
	row("RunPodSandbox alone, "+hostNetwork.name, took[hostNetwork]...)
	row("RunPodSandbox alone, "+w.name, took[w]...)
	row("  … the network's share (what is beyond host network), "+w.name,
		quantile(took[w], 0.5)-quantile(took[hostNetwork], 0.5))
	row("  … StopPodSandbox+RemovePodSandbox, "+w.name, down...)
	return d.client.removeSandbox(ctx, held)
}

// The number of sandboxes of addressesRound, and how many of them run concurrently.
const (
	addressed = 200
	lanes     = 50
)

// addressesRound runs many sandboxes and reads the address of each.
func (b *bench) addressesRound(ctx context.Context, d *daemon, w way, round int) error {
	if err := d.choose(w); err != nil {
		return err
	}
	if err := sleep(ctx, turn); err != nil {
		return err
	}
	ids := make([]string, addressed)
	begin := time.Now()
	err := inLanes(addressed, lanes, func(n int) (err error) {
		if ids[n], err = d.client.sandbox(ctx, b.request(d, fmt.Sprintf("many-%d-%d", round, n), false)); err != nil {
			return err
		}
		return d.client.hasAddress(ctx, ids[n])
	})
	if err != nil {
		return err
	}
	took := time.Since(begin).Seconds()
	row := fmt.Sprintf("%d pods, %d at once, until all have addresses", addressed, lanes)
	if d.name == "kuri" && w.cni { // its default network is the row above
		row = "  … Kuri with " + w.name
	}
	b.report.add(row, "s", d.name, round, took)
	return inLanes(addressed, lanes, func(n int) error { return d.client.removeSandbox(ctx, ids[n]) })
}

// inLanes runs a function for 0…n-1 in concurrent lanes and waits for all of them.
func inLanes(n, lanes int, f func(int) error) error {
	next := make(chan int)
	errs := make([]error, n)
	var wait sync.WaitGroup
	for range lanes {
		wait.Go(func() {
			for k := range next {
				errs[k] = f(k)
			}
		})
	}
	for k := range n {
		next <- k
	}
	close(next)
	wait.Wait()
	return errors.Join(errs...)
}

func (c *client) sandbox(ctx context.Context, r podRequest) (string, error) {
	resp, err := c.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: r.sandboxConfig()})
	if err != nil {
		return "", fmt.Errorf("run pod %s: %w", r.name, err)
	}
	return resp.PodSandboxId, nil
}

func (c *client) hasAddress(ctx context.Context, id string) error {
	resp, err := c.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		return fmt.Errorf("status of sandbox %s: %w", id, err)
	}
	if resp.GetStatus().GetNetwork().GetIp() == "" {
		return fmt.Errorf("sandbox %s has no address", id)
	}
	return nil
}

func (c *client) removeSandbox(ctx context.Context, id string) error {
	if _, err := c.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	if _, err := c.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	return nil
}

// cniPlaces returns the directories of a runtime's CNI configuration and of its plugins' addresses.
func cniPlaces(dir string) (conf, ipam string) {
	return filepath.Join(dir, "net.d"), filepath.Join(dir, "ipam")
}
