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

// examine is "kurid doctor", which kuri doctor starts when no daemon serves. It prints the findings as the JSON of
// kuri.v1.ExamineResponse, and takes the daemon's flags and configuration file.
func examine(ctx context.Context, cfg config.Config) error { return examineStopped(ctx, cfg, false) }

// examineAndFix is "kurid doctor --fix".
func examineAndFix(ctx context.Context, cfg config.Config) error {
	return examineStopped(ctx, cfg, true)
}

func examineStopped(ctx context.Context, cfg config.Config, fix bool) error {
	if err := checkFormats(cfg); err != nil { // a newer version's records would look damaged
		return err
	}
	for _, dir := range ownedDirs(cfg) {
		unlock, err := lock(dir)
		if errors.Is(err, fault.Precondition) {
			return locked(cfg, fault.New(fault.Precondition, "a kurid has locked %s and does not answer at %s: %w", dir,
				cfg.Listen, err))
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
	n, err := networks(cfg) // not closed: Close removes an unused bridge, and doctor must change nothing without --fix
	if err != nil {
		return err
	}
	report, err := doctor.Examine(ctx, doctor.Stopped(cfg.Root, cfg.State, cfg.ContainerRoot, driver, groups, n), fix)
	if err != nil {
		return err
	}
	return printReport(report)
}

// locked reports stale locks. If there are none, a living kurid has the directories, and it returns why.
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
