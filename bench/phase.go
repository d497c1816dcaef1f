package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// settle is how long a runtime idles before its memory and idle CPU time are read.
const settle = 3 * time.Second

// turn is the pause between the turns of the runtimes: each still cleans up after its last pod.
const turn = time.Second

// startPhase starts each daemon several times, alternately, and leaves it running. Each start is as
// after a boot: no process of the runtime runs, and its directories exist.
func (b *bench) startPhase(ctx context.Context) error {
	for range b.rounds + 1 { // the first creates the directories and does not count
		for _, d := range b.runtimes {
			if err := d.stop(true); err != nil {
				return err
			}
			if _, err := d.start(ctx); err != nil {
				return err
			}
		}
	}
	for round := range b.rounds {
		for _, d := range b.runtimes {
			if err := d.stop(true); err != nil {
				return err
			}
			took, err := d.start(ctx)
			if err != nil {
				return err
			}
			b.report.add("daemon start to ready", "ms", d.name, round, milliseconds(took))
			if d.lasting == "" {
				continue
			}
			if err := d.stop(false); err != nil {
				return err
			}
			if took, err = d.start(ctx); err != nil {
				return err
			}
			b.report.add("  … "+d.lasting+" running already", "ms", d.name, round, milliseconds(took))
		}
	}
	return nil
}

// fresh restarts a daemon, so that a phase starts without the heap of the previous one. It then
// pulls the image and warms the daemon up with a few pods.
func (b *bench) fresh(ctx context.Context, d *daemon) error {
	if err := d.stop(true); err != nil {
		return err
	}
	if _, err := d.start(ctx); err != nil {
		return err
	}
	if err := d.client.pull(ctx, b.images.reference(sleeperImage)); err != nil {
		return fmt.Errorf("pull with %s: %w", d.name, err)
	}
	for n := range 3 {
		p, _, err := d.client.up(ctx, b.request(d, fmt.Sprintf("warm-%d", n), false))
		if err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		if err := errors.Join(d.client.exec(ctx, p), d.client.down(ctx, p)); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

func (b *bench) freshAll(ctx context.Context) error {
	for _, d := range b.runtimes {
		if err := b.fresh(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) request(d *daemon, name string, host bool) podRequest {
	return podRequest{
		name: name, image: b.images.reference(sleeperImage), host: host,
		cgroup: d.cgroup + "/pods", logs: filepath.Join(b.dir, d.name, "logs"),
	}
}

// networks has the networks of pods: the name in the report, and whether it is the node's network.
var networks = []struct {
	name string
	host bool
}{{"host network", true}, {"default network", false}}

// podKinds has the kinds of pods that are started one at a time: the name of the rows, and the
// difference from a plain pod.
var podKinds = []struct {
	name   string
	change func(*podRequest)
}{
	{"host network", func(r *podRequest) { r.host = true }},
	{"default network", func(*podRequest) {}},
	{"RuntimeDefault", func(r *podRequest) { r.filter = true }},
	{"user namespace", func(r *podRequest) { r.users = true }},
}

// podsPhase starts pods one at a time and removes them.
func (b *bench) podsPhase(ctx context.Context) error {
	if err := b.freshAll(ctx); err != nil {
		return err
	}
	for _, kind := range podKinds {
		if err := b.podsOf(ctx, kind.name, kind.change); err != nil {
			return err
		}
	}
	return nil
}

// podsOf starts pods of one kind and removes them. If a runtime cannot run them here, it gets no
// row and podsOf prints the reason.
func (b *bench) podsOf(ctx context.Context, kind string, change func(*podRequest)) error {
	able := map[*daemon]bool{}
	for _, d := range b.runtimes {
		p, _, err := d.client.up(ctx, b.changed(d, "try", change))
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: no %s: %v\n", d.name, kind, err)
			if p.sandbox == "" {
				continue
			}
			if err := d.client.downSandbox(ctx, p); err != nil {
				return err
			}
			continue
		}
		able[d] = true
		if err := d.client.down(ctx, p); err != nil {
			return err
		}
	}
	for round := range b.rounds {
		for _, d := range b.runtimes {
			if !able[d] {
				continue
			}
			if err := sleep(ctx, turn); err != nil {
				return err
			}
			if err := b.podsRound(ctx, d, kind, change, round); err != nil {
				return fmt.Errorf("%s, %s: %w", d.name, kind, err)
			}
		}
	}
	return nil
}

// changed returns the request for a pod of some kind.
func (b *bench) changed(d *daemon, name string, change func(*podRequest)) podRequest {
	r := b.request(d, name, false)
	change(&r)
	return r
}

func (b *bench) podsRound(ctx context.Context, d *daemon, network string, change func(*podRequest), round int) error {
	n := b.pods / b.rounds
	before, err := cpu(d.name)
	if err != nil {
		return err
	}
	var pods []pod
	for k := range n {
		p, t, err := d.client.up(ctx, b.changed(d, fmt.Sprintf("one-%d-%d", round, k), change))
		if err != nil {
			return err
		}
		pods = append(pods, p)
		b.report.add("pod ready (Run+Create+Start), "+network, "ms", d.name, round, milliseconds(t.sandbox+t.container))
		b.report.add("  … RunPodSandbox, "+network, "ms", d.name, round, milliseconds(t.sandbox))
		b.report.add("  … CreateContainer+StartContainer, "+network, "ms", d.name, round, milliseconds(t.container))
	}
	after, err := cpu(d.name)
	if err != nil {
		return err
	}
	b.report.add("CPU per pod started, "+network, "ms", d.name, round, float64(after-before)/1e6/float64(n))
	for _, p := range pods {
		begin := time.Now()
		if err := d.client.down(ctx, p); err != nil {
			return err
		}
		b.report.add("pod down (Stop+Remove), "+network, "ms", d.name, round, milliseconds(time.Since(begin)))
	}
	return nil
}

// burstPhase starts all pods concurrently.
func (b *bench) burstPhase(ctx context.Context) error {
	if err := b.freshAll(ctx); err != nil {
		return err
	}
	for _, network := range networks {
		for round := range min(b.rounds, 3) {
			for _, d := range b.runtimes {
				if err := sleep(ctx, turn); err != nil {
					return err
				}
				pods, took, err := b.atOnce(ctx, d, fmt.Sprintf("burst-%d", round), network.host)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", d.name, network.name, err)
				}
				b.report.add(fmt.Sprintf("%d at once, %s", b.pods, network.name), "pods/s", d.name, round,
					float64(b.pods)/took.Seconds())
				// Process 1 of a namespace does not receive a SIGTERM sent before its program handles that.
				if err := sleep(ctx, time.Second); err != nil {
					return err
				}
				begin := time.Now()
				err = each(len(pods), func(n int) error { return d.client.down(ctx, pods[n]) })
				if err != nil {
					return fmt.Errorf("%s, %s: %w", d.name, network.name, err)
				}
				b.report.add(fmt.Sprintf("%d down at once, %s", b.pods, network.name), "pods/s", d.name, round,
					float64(b.pods)/time.Since(begin).Seconds())
			}
		}
	}
	return nil
}

func (b *bench) atOnce(ctx context.Context, d *daemon, name string, host bool) ([]pod, time.Duration, error) {
	pods := make([]pod, b.pods)
	begin := time.Now()
	err := each(b.pods, func(n int) (err error) {
		pods[n], _, err = d.client.up(ctx, b.request(d, name+"-"+strconv.Itoa(n), host))
		return err
	})
	return pods, time.Since(begin), err
}

// each runs a function concurrently for 0…n-1 and waits for all calls.
func each(n int, f func(int) error) error {
	errs := make([]error, n)
	var wait sync.WaitGroup
	for k := range n {
		wait.Go(func() { errs[k] = f(k) })
	}
	wait.Wait()
	return errors.Join(errs...)
}

// memoryPhase compares a runtime without pods with the same runtime with all pods, and measures its
// idle CPU time with them.
func (b *bench) memoryPhase(ctx context.Context) error {
	for _, d := range b.runtimes {
		if err := b.fresh(ctx, d); err != nil {
			return err
		}
		if err := b.memoryOf(ctx, d); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

func (b *bench) memoryOf(ctx context.Context, d *daemon) error {
	// 1. Without pods.
	empty, emptyKernel, err := b.taken(ctx, d)
	if err != nil {
		return err
	}
	b.report.add("memory without pods (PSS)", "MiB", d.name, 0, mebibytes(total(empty)))
	// 2. With all pods, started one after the other as a node does over its life.
	var pods []pod
	for n := range b.pods {
		p, _, err := d.client.up(ctx, b.request(d, fmt.Sprintf("memory-%d", n), false))
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	full, fullKernel, err := b.taken(ctx, d)
	if err != nil {
		return err
	}
	perPod := func(now, before int64) float64 { return float64(now-before) / 1024 / float64(b.pods) }
	b.report.add("memory per pod (PSS)", "KiB", d.name, 0, perPod(total(full), total(empty)))
	for _, program := range slices.Sorted(maps.Keys(full)) {
		b.report.add("  … "+program, "KiB", d.name, 0, perPod(full[program], empty[program]))
	}
	b.report.add("kernel memory per pod (memcg)", "KiB", d.name, 0, perPod(fullKernel, emptyKernel))
	// 3. Idle with them.
	const idle = 10 * time.Second
	before, err := cpu(d.name)
	if err != nil {
		return err
	}
	if err := sleep(ctx, idle); err != nil {
		return err
	}
	after, err := cpu(d.name)
	if err != nil {
		return err
	}
	b.report.add(fmt.Sprintf("CPU while %d pods idle", b.pods), "%", d.name, 0,
		max(0, float64(after-before)/float64(idle)*100))
	// 4. Down.
	for _, p := range pods {
		if err := d.client.down(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// taken returns the memory of a runtime that has idled for a while: by program, and the kernel's.
func (b *bench) taken(ctx context.Context, d *daemon) (map[string]int64, int64, error) {
	if err := sleep(ctx, settle); err != nil {
		return nil, 0, err
	}
	user, err := memory(d.name)
	if err != nil {
		return nil, 0, err
	}
	kernel, err := kernelMemory(d.name)
	return user, kernel, err
}

func total(byProgram map[string]int64) int64 {
	var sum int64
	for _, n := range byProgram {
		sum += n
	}
	return sum
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
