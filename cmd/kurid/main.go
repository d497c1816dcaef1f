// Command kurid is Kuri's daemon: it serves the Container Runtime Interface, v1 and v1alpha2, to a kubelet or any other
// client. It may be killed, restarted or replaced at any moment; what runs goes on running.
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
	"strings"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/kuri-cri/kuri/internal/config"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/stream"
)

// version is set by the build.
var version = "dev"

func main() {
	// The main thread is this goroutine's alone: one that enters namespaces for others has to end, and it cannot.
	runtime.LockOSThread()
	args, read, work := os.Args[1:], configure, run
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
	case len(args) > 0 && args[0] == stream.Mode:
		args, read, work = args[1:], configureStreams, streams
	case len(args) > 1 && args[0] == "network" && args[1] == "prune":
		args, work = args[2:], pruneNetwork
	case len(args) > 0 && args[0] == "alone":
		args, work = args[1:], serveAlone
	case len(args) > 0 && args[0] == "doctor":
		args, work = args[1:], examine
		if len(args) > 0 && args[0] == "--fix" {
			args, work = args[1:], mend
		}
	}
	cfg, err := read(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case err != nil:
		fmt.Fprintln(os.Stderr, "kurid:", err)
		os.Exit(2)
	}
	logTo(cfg)
	dumpStacks()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	if err := work(ctx, cfg); err != nil {
		slog.Error("kurid ends", "err", err)
		os.Exit(1)
	}
}

// configureStreams reads the flags of the process that streams, which needs no file.
func configureStreams(args []string) (config.Config, error) {
	cfg := config.Default()
	flags := flag.NewFlagSet("kurid "+stream.Mode, flag.ContinueOnError)
	flags.StringVar(&cfg.LogLevel, "log-level", cfg.LogLevel, "debug, info, warn or error")
	flags.StringVar(&cfg.LogFormat, "log-format", cfg.LogFormat, "text or json")
	return cfg, flags.Parse(args)
}

// streams is the process that streams, which kurid starts.
func streams(ctx context.Context, _ config.Config) error { return stream.Serve(ctx) }

// configure reads the flags, the file that they name, and lets the flags have the last word.
func configure(args []string) (config.Config, error) {
	flags := flag.NewFlagSet("kurid", flag.ContinueOnError)
	file := flags.String("config", "", "`file` with the configuration (default "+config.File+", if it is there)")
	said := config.Default()
	flags.StringVar(&said.Listen, "listen", said.Listen, "`path` of the CRI socket")
	flags.StringVar(&said.ImageListen, "image-listen", said.ImageListen, "`path` of a second socket, for the ImageService; default: the same socket")
	flags.StringVar(&said.Root, "root", said.Root, "`directory` for images and what must outlive a reboot")
	flags.StringVar(&said.State, "state", said.State, "`directory` for what lives as long as the boot")
	flags.StringVar(&said.LogLevel, "log-level", said.LogLevel, "debug, info, warn or error")
	flags.StringVar(&said.LogFormat, "log-format", said.LogFormat, "text or json")
	flags.StringVar(&said.CgroupDriver, "cgroup-driver", said.CgroupDriver, "auto, systemd or cgroupfs")
	replace := flags.Bool("replace", false, "take over from a kurid that serves these directories, which ends")
	showVersion := flags.Bool("version", false, "print the version and end")
	if err := flags.Parse(args); err != nil {
		return said, err
	}
	if *showVersion {
		fmt.Println("kurid", version)
		return said, flag.ErrHelp
	}
	if flags.NArg() > 0 {
		return said, fmt.Errorf("unexpected argument %q; kurid takes flags only, see --help", flags.Arg(0))
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
			cfg.Listen = said.Listen
		case "image-listen":
			cfg.ImageListen = said.ImageListen
		case "root":
			cfg.Root = said.Root
		case "state":
			cfg.State = said.State
			// A state directory of its own means a socket of its own, unless that is said otherwise.
			if !isSet(flags, "listen") && cfg.Listen == config.Default().Listen {
				cfg.Listen = strings.TrimSuffix(said.State, "/") + "/kuri.sock"
			}
		case "log-level":
			cfg.LogLevel = said.LogLevel
		case "log-format":
			cfg.LogFormat = said.LogFormat
		case "cgroup-driver":
			cfg.CgroupDriver = said.CgroupDriver
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
	klog.SetSlogLogger(slog.New(library{h})) // what the libraries of Kubernetes have to say
}

// library takes the log of a library that reads connections which we close: that they are closed is no error.
type library struct{ slog.Handler }

func (l library) Handle(ctx context.Context, r slog.Record) error {
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

func (l library) WithAttrs(attrs []slog.Attr) slog.Handler {
	return library{l.Handler.WithAttrs(attrs)}
}

func (l library) WithGroup(name string) slog.Handler { return library{l.Handler.WithGroup(name)} }
