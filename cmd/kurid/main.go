// Command kurid is Kuri's daemon. It serves the Container Runtime Interface, v1 and v1alpha2, to a kubelet or any other
// client. It may be killed, restarted or replaced at any moment; pods keep running.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/kuri-cri/kuri/internal/config"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/stream"
)

// version is set by the build.
var version = "dev"

func main() {
	// Keep the main thread for this goroutine: a thread that has entered a namespace must exit, and
	// the main thread cannot.
	runtime.LockOSThread()
	began := time.Now()
	args := os.Args[1:]
	switch {
	case len(args) > 0 && args[0] == standInMode:
		standIn(len(args) > 1)
		return
	case len(args) == 2 && args[0] == handOverMode:
		if err := handOver(args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "kurid:", err)
			os.Exit(1)
		}
		return
	}
	unit := os.Getenv("NOTIFY_SOCKET") != "" && (len(args) == 0 || strings.HasPrefix(args[0], "-"))
	args, read, work := choose(args)
	cfg, err := read(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case err != nil:
		fmt.Fprintln(os.Stderr, "kurid:", err)
		if unit {
			brake(context.Background(), began)
		}
		os.Exit(2)
	}
	logTo(cfg)
	dumpStacks()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal kills the process
	if err := work(ctx, cfg); err != nil {
		slog.Error("kurid ends", "err", err)
		if unit {
			brake(ctx, began)
		}
		os.Exit(1)
	}
}

// choose returns what the arguments ask for: the daemon, or one of its other modes, whose words it
// removes from the arguments. The configuration comes from read, and work ends with its context.
func choose(args []string) (rest []string, read func([]string) (config.Config, error),
	work func(context.Context, config.Config) error) {
	begins := func(words ...string) bool { return len(args) >= len(words) && slices.Equal(args[:len(words)], words) }
	switch {
	case begins(stream.Mode):
		return args[1:], configureStreams, streams
	case begins("network", "prune"):
		return args[2:], configure, pruneNetwork
	case begins("alone"):
		return args[1:], configure, serveAlone
	case begins("doctor", "--fix"):
		return args[2:], configure, examineAndFix
	case begins("doctor"):
		return args[1:], configure, examine
	}
	return args, configure, run
}

// brake waits until one second after began, or until a signal. systemd restarts kurid a moment after
// its exit, because a killed one must be back soon. But a start that fails is likely to fail again,
// and should not use a processor for it.
func brake(ctx context.Context, began time.Time) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Until(began.Add(time.Second))):
	}
}

// configureStreams reads the flags of "kurid streams", which needs no configuration file.
func configureStreams(args []string) (config.Config, error) {
	cfg := config.Default()
	flags := flag.NewFlagSet("kurid "+stream.Mode, flag.ContinueOnError)
	flags.StringVar(&cfg.LogLevel, "log-level", cfg.LogLevel, "debug, info, warn or error")
	flags.StringVar(&cfg.LogFormat, "log-format", cfg.LogFormat, "text or json")
	return cfg, flags.Parse(args)
}

// streams is "kurid streams", a child of kurid that serves exec, attach and port forwarding.
func streams(ctx context.Context, _ config.Config) error { return stream.Serve(ctx) }

// configure reads the flags and the configuration file. Flags override the file.
func configure(args []string) (config.Config, error) {
	flags := flag.NewFlagSet("kurid", flag.ContinueOnError)
	file := flags.String("config", "", "`file` with the configuration (default "+config.File+", if it exists)")
	flagged := config.Default()
	flags.StringVar(&flagged.Listen, "listen", flagged.Listen, "`path` of the CRI socket")
	flags.StringVar(&flagged.ImageListen, "image-listen", flagged.ImageListen,
		"`path` of a second socket, for the ImageService; default: the same socket")
	flags.StringVar(&flagged.Root, "root", flagged.Root,
		"`directory` for images and everything else that survives a reboot")
	flags.StringVar(&flagged.State, "state", flagged.State,
		"`directory` for sockets and everything else that does not survive a reboot")
	flags.StringVar(&flagged.LogLevel, "log-level", flagged.LogLevel, "debug, info, warn or error")
	flags.StringVar(&flagged.LogFormat, "log-format", flagged.LogFormat, "text or json")
	flags.StringVar(&flagged.CgroupDriver, "cgroup-driver", flagged.CgroupDriver, "auto, systemd or cgroupfs")
	replace := flags.Bool("replace", false, "take over from a running kurid with the same directories, and end it")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return flagged, err
	}
	if *showVersion {
		fmt.Println("kurid", version)
		return flagged, flag.ErrHelp
	}
	if flags.NArg() > 0 {
		return flagged, fmt.Errorf("unexpected argument %q: kurid takes only flags, see --help", flags.Arg(0))
	}

	path := *file
	if path == "" {
		path = config.File
	}
	cfg, err := config.Read(path)
	if err != nil && (*file != "" || !errors.Is(err, fault.NotFound)) {
		return cfg, err
	}
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "listen":
			cfg.Listen = flagged.Listen
		case "image-listen":
			cfg.ImageListen = flagged.ImageListen
		case "root":
			cfg.Root = flagged.Root
		case "state":
			cfg.State = flagged.State
			// Another state directory implies another socket, unless --listen or the file names one.
			if !isSet(flags, "listen") && cfg.Listen == config.Default().Listen {
				cfg.Listen = strings.TrimSuffix(flagged.State, "/") + "/kuri.sock"
			}
		case "log-level":
			cfg.LogLevel = flagged.LogLevel
		case "log-format":
			cfg.LogFormat = flagged.LogFormat
		case "cgroup-driver":
			cfg.CgroupDriver = flagged.CgroupDriver
		}
	})
	cfg.Replace = *replace
	return cfg, cfg.Check()
}

func isSet(flags *flag.FlagSet, name string) bool {
	set := false
	flags.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

func logTo(cfg config.Config) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		level = slog.LevelInfo // config.Check has seen it
	}
	opts := &slog.HandlerOptions{Level: level}
	var h slog.Handler = slog.NewTextHandler(os.Stderr, opts)
	if cfg.LogFormat == "json" {
		h = slog.NewJSONHandler(os.Stderr, opts)
	}
	slog.SetDefault(slog.New(h))
	klog.SetSlogLogger(slog.New(libraryLog{h})) // Kubernetes' libraries log through klog
}

// libraryLog drops the errors that a library logs when it reads a connection that Kuri has closed.
type libraryLog struct{ slog.Handler }

func (l libraryLog) Handle(ctx context.Context, r slog.Record) error {
	closed := false
	r.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		closed = ok && errors.Is(err, net.ErrClosed)
		return !closed
	})
	if closed {
		return nil
	}
	return l.Handler.Handle(ctx, r)
}

func (l libraryLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return libraryLog{l.Handler.WithAttrs(attrs)}
}

func (l libraryLog) WithGroup(name string) slog.Handler { return libraryLog{l.Handler.WithGroup(name)} }
