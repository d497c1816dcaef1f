package main

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/config"
	"github.com/kuri-cri/kuri/internal/doctor"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/server"
)

// examine is "kurid doctor", which kuri doctor starts while no daemon serves: it prints what is found as the JSON of
// kuri.v1.ExamineResponse. It takes the flags and the file that the daemon would take. mend is "kurid doctor --fix".
func examine(ctx context.Context, cfg config.Config) error { return examineStopped(ctx, cfg, false) }
func mend(ctx context.Context, cfg config.Config) error    { return examineStopped(ctx, cfg, true) }

func examineStopped(ctx context.Context, cfg config.Config, fix bool) error {
	if err := checkFormats(cfg); err != nil { // a newer version's records would look damaged
		return err
	}
	for _, dir := range own(cfg) {
		unlock, err := lock(dir)
		if errors.Is(err, fault.Precondition) {
			return locked(cfg, fault.New(fault.Precondition, "a kurid holds %s and does not answer at %s: %w", dir, cfg.Listen, err))
		}
		if err != nil {
			return err
		}
		defer unlock()
	}
	facts, err := nodeFacts(cfg)
	if err != nil {
		return err
	}
	driver, err := cgroup.Choose(cfg.CgroupDriver, facts.Systemd)
	if err != nil {
		return err
	}
	groups, err := cgroup.Open()
	if err != nil {
		return err
	}
	n, err := networks(cfg) // not closed: that would take an unused bridge away, and looking changes nothing
	if err != nil {
		return err
	}
	report, err := doctor.Examine(ctx, doctor.Stopped(cfg.Root, cfg.State, cfg.ContainerRoot, driver, groups, n), fix)
	if err != nil {
		return err
	}
	return printReport(report)
}

// locked reports locks whose owner has ended. Where it is a kurid that holds them, the error is why.
func locked(cfg config.Config, why error) error {
	found, err := doctor.StaleLocks(cfg.Root, cfg.State)
	if err != nil || len(found) == 0 {
		return errors.Join(why, err)
	}
	return printReport(doctor.Report{Findings: found, Blind: []doctor.Blind{{Check: "all else", Err: why}}})
}

func printReport(r doctor.Report) error {
	text, err := protojson.Marshal(server.ReportOf(r))
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%s\n", text)
	return err
}
