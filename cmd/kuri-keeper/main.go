// Command kuri-keeper creates and serves the node's containers; see internal/keeper/server.
// kuri-holder starts it for kurid, and starts another when it dies. Both outlive kurid.
//
// SIGTERM ends it, with status 0, only when it has no pods; the holder then ends too. Its log is <state>/keeper.log.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/idle"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/server"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/profile"
	"github.com/kuri-cri/kuri/internal/threads"
)

// version is set by the build.
var version = "devel"

func main() {
	// Keep the main thread out of other namespaces: a thread that has entered one must exit, and the main thread cannot.
	runtime.LockOSThread()
	profile.Quiet()
	if len(os.Args) > 1 && os.Args[1] == "init" {
		oci.Init()
	}
	if len(os.Args) > 1 && os.Args[1] == "seccomp-filter" {
		oci.Filter()
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "kuri-keeper: %v\n", err)
		if errors.Is(err, fault.Precondition) {
			os.Exit(keeper.TooOld)
		}
		os.Exit(1)
	}
}

func run() error {
	state := flag.String("state", "/run/kuri", "state directory: an absolute path")
	level := flag.String("log-level", "info", "debug, info, warn or error")
	showVersion := flag.Bool("version", false, "print the version and exit")
	check := flag.Bool("check", false, "check that this keeper can take over the state directory, and exit")
	takeOver := flag.Bool("take-over", false, "take over from the keeper that standard input describes, end it, and exit")
	flag.Parse()
	if *showVersion {
		fmt.Println("kuri-keeper", version)
		return nil
	}
	if !filepath.IsAbs(*state) || flag.NArg() > 0 {
		return errors.New("usage: kuri-keeper --state /absolute/path")
	}
	var logLevel slog.Level
	if err := logLevel.UnmarshalText([]byte(*level)); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	if *check {
		return server.CheckRecords(*state)
	}
	if *takeOver {
		of := &keeper.Predecessor{}
		if err := json.NewDecoder(os.Stdin).Decode(of); err != nil {
			return fmt.Errorf("read the description of the keeper to take over from: %w", err)
		}
		return server.TakeOver(context.Background(), filepath.Clean(*state), of)
	}
	// Catch SIGHUP from the beginning: it would kill this process. It is not ignored, because
	// containers would inherit that.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	// Keep the heap small: collect when it has grown by half. A larger heap saves CPU time, but what
	// lives on after a burst of starts is then spread over more pages: see docs/performance.md.
	debug.SetGCPercent(50)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of the containers: %w", err)
	}
	unix.Umask(0o022)
	if err := os.Chdir("/"); err != nil {
		return err
	}
	s, err := server.Open(filepath.Clean(*state), version)
	if err != nil {
		return err
	}
	log, err := openLog(filepath.Join(*state, "keeper.log"))
	if err != nil {
		return err
	}
	at := new(slog.LevelVar)
	slog.SetDefault(slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: at})))
	s.LogAt(at, logLevel)
	logrus.SetOutput(log) // libcontainer's
	logrus.SetLevel(logrus.WarnLevel)
	if err := threads.SetTimerSlack(threads.TimerSlack); err != nil {
		slog.Info("timers stay precise, which costs CPU time", "err", err)
	}
	if err := s.Recover(); err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go endOnSignal(s, signals, cancel)
	go threads.Trim(ctx, 16, time.Minute)
	go idle.Trim(ctx, time.Second)
	if err := s.Serve(ctx, func() { sayReady(log) }); err != nil {
		return err
	}
	slog.Info("the keeper ends")
	return s.Close()
}

// endOnSignal ends a keeper that holds nothing on SIGTERM or SIGINT. On SIGHUP it restores the
// keeper's files that were removed.
func endOnSignal(s *server.Server, signals <-chan os.Signal, end func()) {
	for sig := range signals {
		if sig == syscall.SIGHUP {
			if err := fault.Contained(s.Restore); err != nil {
				slog.Error("the keeper's files cannot be restored", "err", err)
			}
			continue
		}
		retired := false
		if fault.Contained(func() error { retired = s.Retire(); return nil }) == nil && retired {
			end()
			return
		}
		slog.Warn("the keeper does not end: it has pods, which would lose their parent", "signal", sig.String())
	}
}

// sayReady reports readiness to the starter, which reads the output of the keeper to its end, and closes that pipe.
func sayReady(log *logFile) {
	slog.Info("the keeper serves", "pid", os.Getpid(), "version", version)
	fmt.Println("ready")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		slog.Error("close the starter's pipe", "err", err)
		return
	}
	_ = unix.Dup3(int(null.Fd()), 0, 0)
	_ = unix.Dup3(int(null.Fd()), 1, 0)
	null.Close()
	log.becomeStderr()
}
