package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// The number of pods of the execs phase, and of concurrent execs. Containerd's pods use CPU time
// while they are idle, so there are only as many as are needed to spread the execs.
const (
	execPods   = 10
	execAtOnce = 50
)

// execsPhase runs a program that exits at once in existing pods: one at a time, as exec probes do,
// and many concurrently.
func (b *bench) execsPhase(ctx context.Context) error {
	if err := b.freshAll(ctx); err != nil {
		return err
	}
	for _, filter := range []bool{false, true} {
		if err := b.execsIn(ctx, filter); err != nil {
			return err
		}
	}
	return nil
}

// execsIn measures execs in containers with the runtime's default seccomp filter, as in most pods
// of a cluster, or without a filter.
func (b *bench) execsIn(ctx context.Context, filter bool) error {
	pods := map[*daemon][]pod{}
	for _, d := range b.runtimes {
		for n := range execPods {
			request := b.request(d, fmt.Sprintf("exec-%d", n), false)
			request.filter = filter
			p, _, err := d.client.up(ctx, request)
			if err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
			pods[d] = append(pods[d], p)
		}
	}
	suffix := ""
	if filter {
		suffix = ", RuntimeDefault"
	}
	for round := range b.rounds {
		for _, d := range b.runtimes {
			if err := b.execsRound(ctx, d, pods[d], suffix, round); err != nil {
				return fmt.Errorf("%s: %w", d.name, err)
			}
		}
	}
	for d, all := range pods {
		if err := each(len(all), func(n int) error { return d.client.down(ctx, all[n]) }); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
	}
	return nil
}

func (b *bench) execsRound(ctx context.Context, d *daemon, pods []pod, suffix string, round int) error {
	if err := sleep(ctx, turn); err != nil {
		return err
	}
	one := "ExecSync, one at a time" + suffix
	err := b.execsMeasured(d, one, round, execAtOnce, func(record func(time.Duration)) error {
		for n := range execAtOnce {
			took, err := d.client.execTimed(ctx, pods[n%len(pods)])
			if err != nil {
				return err
			}
			record(took)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := sleep(ctx, turn); err != nil {
		return err
	}
	many := fmt.Sprintf("ExecSync, %d at once%s", execAtOnce, suffix)
	return b.execsMeasured(d, many, round, execAtOnce, func(record func(time.Duration)) error {
		took, errs := make([]time.Duration, execAtOnce), make([]error, execAtOnce)
		err := each(execAtOnce, func(n int) error {
			took[n], errs[n] = d.client.execTimed(ctx, pods[n%len(pods)])
			return errs[n]
		})
		for n, t := range took {
			if errs[n] == nil {
				record(t)
			}
		}
		return err
	})
}

// execsMeasured reports the durations of count execs and the average CPU time of one.
func (b *bench) execsMeasured(d *daemon, name string, round, count int,
	run func(record func(time.Duration)) error) error {
	before, err := cpu(d.name)
	if err != nil {
		return err
	}
	if err := run(func(t time.Duration) { b.report.add(name, "ms", d.name, round, milliseconds(t)) }); err != nil {
		return err
	}
	after, err := cpu(d.name)
	if err != nil {
		return err
	}
	b.report.add("  … CPU of one, "+strings.TrimPrefix(name, "ExecSync, "), "ms", d.name, round,
		float64(after-before)/1e6/float64(count))
	return nil
}

// execTimed runs a program that exits at once and returns the duration.
func (c *client) execTimed(ctx context.Context, p pod) (time.Duration, error) {
	begin := time.Now()
	err := c.exec(ctx, p)
	return time.Since(begin), err
}
