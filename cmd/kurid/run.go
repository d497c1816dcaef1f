package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/config"
	"github.com/kuri-cri/kuri/internal/doctor"
	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/idle"
	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/listen"
	"github.com/kuri-cri/kuri/internal/network/bridge"
	"github.com/kuri-cri/kuri/internal/network/cni"
	"github.com/kuri-cri/kuri/internal/network/selector"
	"github.com/kuri-cri/kuri/internal/node"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/quota"
	"github.com/kuri-cri/kuri/internal/registry"
	"github.com/kuri-cri/kuri/internal/server"
	"github.com/kuri-cri/kuri/internal/spec"
	"github.com/kuri-cri/kuri/internal/stream"
	"github.com/kuri-cri/kuri/internal/threads"
	"github.com/kuri-cri/kuri/internal/trace"
	"github.com/kuri-cri/kuri/internal/verifier"
)

// run serves until ctx ends. Pods keep running. Calls in flight are then answered while the next daemon already serves.
func run(ctx context.Context, cfg config.Config) error {
	tracer := traces(ctx, cfg)
	defer tracer.Close() // last of all: its collector may not answer, and nothing must wait for it
	pending, err := serve(ctx, cfg, holder.Connect(cfg.State), tracer)
	if pending != nil {
		pending.finish()
	}
	return err
}

// serve builds the parts in order, serves until ctx ends, and closes the parts in reverse. It
// returns the calls that are still in flight, nil for none. The holder keeps the listening sockets.
func serve(ctx context.Context, cfg config.Config, held *holder.Client,
	tracer *trace.Exporter) (pending *pendingCalls, err error) {
	defer held.Close()
	saveResources(ctx)

	// 1. The node's facts, and the configuration of pods.
	podOptions, err := podOptions(cfg)
	if err != nil {
		return nil, err
	}

	// 2. Lock the directories.
	unlock, err := lockDirs(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer unlock()
	failpoint.Arm(cfg.State)

	// 3. Images.
	layers, settled, err := layer.OpenHeld(cfg.Root)
	if err != nil {
		return nil, err
	}
	defer layers.Close()
	images, err := image.Open(ctx, imageOptions(cfg, layers))
	if err != nil {
		return nil, err
	}
	defer images.Close()

	// 4. The network.
	net, err := networks(cfg)
	if err != nil {
		return nil, err
	}
	defer net.Close()

	// 5. The keeper, and the pods that it holds.
	keep, err := startKeeper(ctx, cfg, podOptions)
	if err != nil {
		return nil, err
	}
	defer func() {
		if pending == nil {
			keep.Close()
		}
	}()
	podOptions.Keeper, podOptions.Images, podOptions.Layers, podOptions.Network = keep, images, layers, net
	pods, err := pod.Open(ctx, podOptions)
	if err != nil {
		return nil, err
	}
	defer pods.Close()
	settled()
	restoreNetworks(ctx, net, pods)

	// 6. The streams of exec, attach and port forwarding.
	streams, err := stream.Open(streamOptions(cfg))
	if err != nil {
		return nil, err
	}
	defer streams.Close()

	// 7. The sockets, last of all.
	sockets := listen.New(held)
	defer sockets.Close()
	built := &parts{
		cfg: cfg, node: podOptions.Node, layers: layers, images: images, network: net, keeper: keep, holder: held, pods: pods,
		streams: streams, sockets: sockets, tracer: tracer, began: time.Now(),
	}
	srv, err := built.listen()
	if err != nil {
		return nil, err
	}
	defer func() {
		if srv.Drain() {
			pending = &pendingCalls{srv, keep}
		}
		keep.Linger()
	}()
	reportReady(cfg, podOptions.Driver)

	// 8. Serve.
	select {
	case <-ctx.Done():
		// Not STOPPING=1: after it systemd accepts no other main process (replaceMainPID).
		slog.Info("kurid ends as asked; pods keep running")
		return nil, nil
	case err := <-srv.Failed():
		return nil, err
	}
}

// saveResources lets timers be late, and gives idle threads and memory back until ctx ends. It uses
// no part of the daemon.
func saveResources(ctx context.Context) {
	if err := threads.SetTimerSlack(threads.TimerSlack); err != nil {
		slog.Info("timers stay precise, which costs CPU time", "err", err)
	}
	go threads.Trim(ctx, 16, time.Minute)
	go idle.Trim(ctx, time.Second)
}

// lockDirs locks the directories that only one daemon may use. Before it asks another daemon to
// end, it makes sure that no newer version has written records there.
func lockDirs(ctx context.Context, cfg config.Config) (unlock func(), err error) {
	if err := checkFormats(cfg); err != nil {
		return nil, err
	}
	return lockOwn(ctx, cfg)
}

// reportReady tells the log and systemd that calls are answered.
func reportReady(cfg config.Config, driver cgroup.Driver) {
	slog.Info("kurid serves", "version", version, "socket", cfg.Listen, "image_socket", cfg.ImageListen,
		"root", cfg.Root, "state", cfg.State, "cgroup_driver", driver, "pid", os.Getpid())
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		slog.Warn("systemd does not know that kurid is ready", "err", err)
	}
}

// listen opens the sockets, on which the server of these parts answers from then on.
func (p *parts) listen() (*server.Server, error) {
	options, err := p.serverOptions()
	if err != nil {
		return nil, err
	}
	return server.Listen(options)
}

// serverOptions returns the options of the server of these parts.
func (p *parts) serverOptions() (server.Options, error) {
	cfg, driver := p.cfg, p.pods.Driver
	values, err := cfg.Map()
	if err != nil {
		return server.Options{}, err
	}
	return server.Options{
		Socket: p.sockets.Unix,
		Listen: cfg.Listen, ImageListen: cfg.ImageListen, CadvisorListen: cfg.CadvisorListen,
		MetricsListen: cfg.MetricsListen,
		DebugListen:   debugSocket(cfg),
		Pods:          p.pods, Images: p.images, Network: p.network, Streams: p.streams, Holder: p.holder,
		Trace: p.tracer.Hook(), SlowAfter: slowAfter(cfg), Version: version, SystemdCgroup: driver == cgroup.Systemd,
		Info: configInfo(cfg, driver, values), About: p.info,
		SetPodCIDR: p.network.SetPodCIDR, PruneNetwork: p.network.Prune,
		Doctor: doctor.Node{
			Root: cfg.Root, State: cfg.State, ContainerRoot: cfg.ContainerRoot, Driver: driver, Cgroups: p.pods.Cgroups,
			Pods: p.pods.Inventory, Layers: p.layers, Network: p.network, Sockets: []string{cfg.Listen, cfg.ImageListen},
		},
	}, nil
}

// startKeeper connects to the keeper, and starts holder and keeper if they do not run.
func startKeeper(ctx context.Context, cfg config.Config, pods pod.Options) (*keeper.Client, error) {
	keep, err := keeper.Start(ctx, keeper.Options{
		Program: cfg.Keeper, StateDir: cfg.State, LogLevel: cfg.LogLevel, SystemdCgroup: pods.Driver == cgroup.Systemd,
		Asked: func() *keeper.Predecessor { return pod.Asked(pods) },
	})
	if err != nil {
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	return keep, nil
}

// restoreNetworks restores the networks of the recovered pods and releases those of removed ones. A
// failure is only logged: the daemon still serves.
func restoreNetworks(ctx context.Context, net *selector.Selector, pods *pod.Pods) {
	for pod, result := range pods.Attached() {
		if err := net.Restore(pod, result); err != nil {
			slog.Error("a pod may lose its network", "err", err)
		}
	}
	if err := net.Reclaim(ctx, pods.Networked); err != nil {
		slog.Warn("networks of removed pods could not be released; the next start tries again", "err", err)
	}
}

// nodeFacts returns the facts about this node, with its configured block I/O classes.
func nodeFacts(cfg config.Config) (spec.Node, error) {
	facts, err := node.Read()
	if err != nil {
		return facts, fmt.Errorf("read the facts of this node: %w", err)
	}
	if cfg.Pod.BlockIOConfig != "" {
		if facts.BlockIO, err = node.BlockIO(cfg.Pod.BlockIOConfig); err != nil {
			return facts, fmt.Errorf("pod.blockio_config: %w", err)
		}
	}
	return facts, nil
}

// podOptions returns the options that come from the node and the configuration; serve adds the parts of the daemon.
func podOptions(cfg config.Config) (pod.Options, error) {
	facts, err := nodeFacts(cfg)
	if err != nil {
		return pod.Options{}, err
	}
	driver, err := cgroup.Choose(cfg.CgroupDriver, facts.Systemd)
	if err != nil {
		return pod.Options{}, err
	}
	o := pod.Options{
		Root: cfg.Root, State: cfg.State, ContainerRoot: cfg.ContainerRoot, Node: facts, Driver: driver,
		ScopePrefix: cfg.ScopePrefix,
		ShmSize:     cfg.Pod.ShmSize, PidsLimit: cfg.Pod.PidsLimit, MaxExecs: cfg.Pod.MaxExecs,
		LogMaxSize: cfg.Pod.LogMaxSize, LogMaxFiles: cfg.Pod.LogMaxFiles, LogRate: cfg.Pod.LogRate,
		CDIDirs: cfg.Pod.CDIDirs, CreateHostPaths: cfg.Pod.CreateMissingHostPaths,
		UnprivilegedPorts: cfg.Pod.UnprivilegedPorts, UnprivilegedPing: cfg.Pod.UnprivilegedPing,
		WritableLayer: spec.WritableLimits{Bytes: uint64(cfg.Pod.WritableLayerBytes),
			Inodes: uint64(cfg.Pod.WritableLayerInodes)},
	}
	if o.WritableLayer != (spec.WritableLimits{}) {
		if err := quota.Check(cfg.WritableRoot()); err != nil {
			return o, fmt.Errorf("pod.writable_layer_bytes, pod.writable_layer_inodes: %w", err)
		}
	}
	if o.Cgroups, err = cgroup.Open(); err != nil {
		return o, fmt.Errorf("find the cgroup hierarchies: %w", err)
	}
	if o.Ulimits, err = spec.ParseUlimits("pod.ulimits", strings.Join(cfg.Pod.Ulimits, ",")); err != nil {
		return o, err
	}
	o.Handlers, err = handlers(cfg)
	return o, err
}

// traces returns the exporter of traces, nil for none. An error is only logged: the daemon still serves.
func traces(ctx context.Context, cfg config.Config) *trace.Exporter {
	e, err := trace.Open(ctx, cfg.TraceEndpoint, version)
	if err != nil {
		slog.Error("traces are not exported", "err", err)
	}
	return e
}

// slowAfter returns the durations after which calls are logged as slow, by method.
func slowAfter(cfg config.Config) map[string]time.Duration {
	after := make(map[string]time.Duration)
	for method, seconds := range cfg.LogSlow {
		after[method] = time.Duration(seconds * float64(time.Second))
	}
	return after
}

func imageOptions(cfg config.Config, layers *layer.Store) image.Options {
	limits := func(stallTimeout int, minRate int64) registry.Limits {
		return registry.Limits{Stall: time.Duration(stallTimeout) * time.Second, MinRate: minRate}
	}
	sources := make(map[string]registry.Limits)
	for host, s := range cfg.Image.Sources {
		sources[host] = limits(s.StallTimeout, s.MinRate)
	}
	var verifiers *verifier.Programs
	if cfg.Image.VerifierDir != "" {
		verifiers = verifier.New(verifier.Options{
			Dir: cfg.Image.VerifierDir, Timeout: time.Duration(cfg.Image.VerifierTimeout) * time.Second, Scratch: cfg.State,
		})
	}
	return image.Options{
		Verifiers: verifiers,
		Root:      cfg.Root, Layers: layers, MaxLayers: cfg.Image.Parallel, Pinned: cfg.Image.Pinned,
		Registry: registry.Options{
			CertsDirs: cfg.Image.CertsDirs, Limits: limits(cfg.Image.StallTimeout, cfg.Image.MinRate), Sources: sources,
		},
	}
}

func streamOptions(cfg config.Config) stream.Options {
	return stream.Options{
		Address: cfg.Stream.Address, Port: cfg.Stream.Port, StateDir: cfg.State,
		TLS:   stream.TLS{Cert: cfg.Stream.TLSCert, Key: cfg.Stream.TLSKey, ClientCA: cfg.Stream.TLSClientCA},
		Drain: time.Duration(cfg.Stream.Drain) * time.Second, MaxStreams: cfg.Stream.MaxStreams,
		Flags: []string{"--log-level", cfg.LogLevel, "--log-format", cfg.LogFormat},
	}
}

// networks returns CNI and the built-in network, behind the configured choice between them.
func networks(cfg config.Config) (*selector.Selector, error) {
	subnets, err := cfg.Network.Prefixes()
	if err != nil {
		return nil, err
	}
	builtin, err := bridge.New(bridge.Config{
		StateDir: bridgeDir(cfg), Name: cfg.Network.Bridge, Subnets: subnets, MTU: cfg.Network.MTU,
		Isolate:      cfg.Network.Isolate,
		OpenFirewall: cfg.Network.OpenFirewall,
	})
	if err != nil {
		return nil, fmt.Errorf("prepare the built-in network: %w", err)
	}
	var own []string
	for _, name := range slices.Sorted(maps.Keys(cfg.Handlers)) {
		if dir := cfg.Handlers[name].CNIConfDir; dir != "" {
			own = append(own, dir)
		}
	}
	plugins, err := cni.New(cni.Config{
		ConfDir: cfg.Network.CNIConfDir, HandlerDirs: own, BinDirs: cfg.Network.CNIBinDirs, CacheDir: cniDir(cfg),
	})
	if err != nil {
		return nil, fmt.Errorf("prepare CNI: %w", err)
	}
	return selector.New(plugins, builtin, selector.Choice(cfg.Network.Use)), nil
}

// handlers returns the configured runtime handlers by name.
func handlers(cfg config.Config) (map[string]pod.Handler, error) {
	out := make(map[string]pod.Handler)
	for name, h := range cfg.Handlers {
		platform, err := image.ParsePlatform(h.Platform)
		if err != nil {
			return nil, fmt.Errorf("handler.%s.platform: %w", name, err)
		}
		out[name] = pod.Handler{CNIConfDir: h.CNIConfDir, Platform: platform}
	}
	return out, nil
}

// ownedDirs returns the directories that only one daemon may use.
func ownedDirs(cfg config.Config) []string {
	dirs := []string{cfg.Root, cfg.State}
	if cfg.ContainerRoot != "" {
		dirs = append(dirs, cfg.ContainerRoot)
	}
	return dirs
}

// checkFormats returns an error that names a record written by a newer version of Kuri. It must run before anything is
// changed, because this version could only damage such records.
func checkFormats(cfg config.Config) error {
	return cmp.Or(
		pod.CheckFormats(cfg.Root, cfg.State), keeper.CheckFormats(cfg.State), image.CheckFormats(cfg.Root),
		layer.CheckFormats(cfg.Root),
		selector.CheckFormats(bridgeDir(cfg), cniDir(cfg)),
	)
}

// bridgeDir and cniDir are the directories of the two networks' records.
func bridgeDir(cfg config.Config) string { return filepath.Join(cfg.State, "network") }
func cniDir(cfg config.Config) string    { return filepath.Join(cfg.Root, "cni") }
