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
	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/listen"
	"github.com/kuri-cri/kuri/internal/network"
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

// run serves until ctx ends. Pods go on running, and what is in flight then is answered beside the next daemon.
func run(ctx context.Context, cfg config.Config) error {
	tracer := traces(ctx, cfg)
	defer tracer.Close() // last of all: its collector may be away, and nobody is to wait for that
	left, err := serve(ctx, cfg, holder.Connect(cfg.State), tracer)
	if left != nil {
		left.finish()
	}
	return err
}

// serve builds the parts in order, serves until ctx ends, and closes them in reverse. It returns what has still requests to
// answer, nil for nothing. The holder keeps the sockets.
func serve(ctx context.Context, cfg config.Config, held *holder.Client, tracer *trace.Exporter) (left *rest, err error) {
	defer held.Close()
	go threads.Trim(ctx, 16, time.Minute) // ends with ctx; touches nothing of what follows

	// 1. What this node is, and what is configured of pods and images.
	facts, err := nodeFacts(cfg)
	if err != nil {
		return nil, err
	}
	driver, err := cgroup.Choose(cfg.CgroupDriver, facts.Systemd)
	if err != nil {
		return nil, err
	}
	podOptions, err := podOptions(cfg)
	if err != nil {
		return nil, err
	}

	// 2. These directories are ours alone, if no newer version has written in them: before a running one is asked to end.
	if err := checkFormats(cfg); err != nil {
		return nil, err
	}
	unlock, err := lockOwn(ctx, cfg)
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
	podOptions.Node, podOptions.Driver, podOptions.ScopePrefix = facts, driver, cfg.ScopePrefix
	keep, err := keeper.Start(ctx, keeper.Options{
		Program: cfg.Keeper, StateDir: cfg.State, LogLevel: cfg.LogLevel, SystemdCgroup: driver == cgroup.Systemd,
		Asked: func() *keeper.Predecessor { return pod.Asked(podOptions) },
	})
	if err != nil {
		return nil, fmt.Errorf("start the keeper: %w", err)
	}
	defer func() {
		if left == nil {
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
	for pod, result := range pods.Attached() {
		if err := net.Restore(pod, result); err != nil {
			slog.Error("a pod may lose its network", "err", err)
		}
	}
	if err := net.Reclaim(ctx, pods.Networked); err != nil { // not a reason to serve nobody
		slog.Warn("networks of pods that are gone could not be reclaimed; the next start tries again", "err", err)
	}

	// 6. The streams of exec, attach and port forwarding.
	streams, err := stream.Open(streamOptions(cfg))
	if err != nil {
		return nil, err
	}
	defer streams.Close()

	// 7. The sockets, last of all.
	values, err := cfg.Map()
	if err != nil {
		return nil, err
	}
	sockets := listen.New(held)
	defer sockets.Close()
	srv, err := server.Listen(server.Options{
		Socket: sockets.Unix,
		Listen: cfg.Listen, ImageListen: cfg.ImageListen, CadvisorListen: cfg.CadvisorListen, MetricsListen: cfg.MetricsListen, DebugListen: debugSocket(cfg),
		Pods: pods, Images: images, Network: net, Streams: streams, Holder: held,
		Trace: tracer.Hook(), SlowAfter: slowAfter(cfg), Version: version, SystemdCgroup: driver == cgroup.Systemd,
		Info:       configInfo(cfg, driver, values),
		About:      (&about{cfg: cfg, node: facts, keeper: keep, holder: held, network: net, images: images, pods: pods, began: time.Now()}).info,
		SetPodCIDR: net.SetPodCIDR, PruneNetwork: net.Prune,
		Doctor: doctor.Node{
			Root: cfg.Root, State: cfg.State, ContainerRoot: cfg.ContainerRoot, Driver: driver, Cgroups: podOptions.Cgroups,
			Pods: pods.Inventory, Layers: layers, Network: net,
		},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if srv.Drain() {
			left = &rest{srv, keep}
		}
		keep.Linger()
	}()
	slog.Info("kurid serves", "version", version, "socket", cfg.Listen, "image_socket", cfg.ImageListen,
		"root", cfg.Root, "state", cfg.State, "cgroup_driver", driver, "pid", os.Getpid())
	daemon.SdNotify(false, daemon.SdNotifyReady)

	select {
	case <-ctx.Done():
		// systemd is not told STOPPING=1: it would take no other main process from then on (bowOut).
		slog.Info("kurid ends as asked, the pods go on")
		return nil, nil
	case err := <-srv.Failed():
		return nil, err
	}
}

// nodeFacts are those of this node, and the block I/O classes that are configured for it.
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

// podOptions are those that the configuration has: the parts of the daemon come to them.
func podOptions(cfg config.Config) (pod.Options, error) {
	o := pod.Options{
		Root: cfg.Root, State: cfg.State, ContainerRoot: cfg.ContainerRoot,
		ShmSize: cfg.Pod.ShmSize, PidsLimit: cfg.Pod.PidsLimit, MaxExecs: cfg.Pod.MaxExecs,
		LogMaxSize: cfg.Pod.LogMaxSize, LogMaxFiles: cfg.Pod.LogMaxFiles, LogRate: cfg.Pod.LogRate,
		CDIDirs: cfg.Pod.CDIDirs, CreateHostPaths: cfg.Pod.CreateMissingHostPaths,
		UnprivilegedPorts: cfg.Pod.UnprivilegedPorts, UnprivilegedPing: cfg.Pod.UnprivilegedPing,
		WritableLayer: spec.WritableLimits{Bytes: uint64(cfg.Pod.WritableLayerBytes), Inodes: uint64(cfg.Pod.WritableLayerInodes)},
	}
	if o.WritableLayer != (spec.WritableLimits{}) {
		if err := quota.Check(cfg.WritableRoot()); err != nil {
			return o, fmt.Errorf("pod.writable_layer_bytes, pod.writable_layer_inodes: %w", err)
		}
	}
	var err error
	if o.Cgroups, err = cgroup.Open(); err != nil {
		return o, fmt.Errorf("find the cgroup hierarchies: %w", err)
	}
	if o.Ulimits, err = spec.ParseUlimits("pod.ulimits", strings.Join(cfg.Pod.Ulimits, ",")); err != nil {
		return o, err
	}
	o.Handlers, err = handlers(cfg)
	return o, err
}

// traces returns what sends traces, nil for nothing. That they cannot be sent is no reason to serve nobody.
func traces(ctx context.Context, cfg config.Config) *trace.Exporter {
	e, err := trace.Open(ctx, cfg.TraceEndpoint, version)
	if err != nil {
		slog.Error("no traces are sent", "err", err)
	}
	return e
}

// slowAfter is when methods are slow.
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
		Drain: time.Duration(cfg.Stream.Drain) * time.Second, Most: cfg.Stream.MaxStreams,
		Flags: []string{"--log-level", cfg.LogLevel, "--log-format", cfg.LogFormat},
	}
}

// networks returns the choice between CNI and the built-in network.
func networks(cfg config.Config) (*network.Select, error) {
	subnets, err := cfg.Network.Prefixes()
	if err != nil {
		return nil, err
	}
	bridge, err := network.NewBridge(network.BridgeConfig{
		StateDir: bridgeDir(cfg), Name: cfg.Network.Bridge, Subnets: subnets, MTU: cfg.Network.MTU, Isolate: cfg.Network.Isolate,
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
	cni, err := network.NewCNI(network.CNIConfig{
		ConfDir: cfg.Network.CNIConfDir, HandlerDirs: own, BinDirs: cfg.Network.CNIBinDirs, CacheDir: cniDir(cfg),
	})
	if err != nil {
		return nil, fmt.Errorf("prepare CNI: %w", err)
	}
	return network.NewSelect(cni, bridge, network.Choice(cfg.Network.Use)), nil
}

// handlers are the runtime handlers that are configured.
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

// own lists the directories that no other daemon may use.
func own(cfg config.Config) []string {
	dirs := []string{cfg.Root, cfg.State}
	if cfg.ContainerRoot != "" {
		dirs = append(dirs, cfg.ContainerRoot)
	}
	return dirs
}

// checkFormats returns an error that names a record which a newer version of Kuri wrote. Nothing has been changed then, and
// nothing must be: what this version does not understand it could only take apart.
func checkFormats(cfg config.Config) error {
	return cmp.Or(
		pod.CheckFormats(cfg.Root, cfg.State), keeper.CheckFormats(cfg.State), image.CheckFormats(cfg.Root), layer.CheckFormats(cfg.Root),
		network.CheckFormats(bridgeDir(cfg), cniDir(cfg)),
	)
}

// bridgeDir and cniDir are where the two networks have their records.
func bridgeDir(cfg config.Config) string { return filepath.Join(cfg.State, "network") }
func cniDir(cfg config.Config) string    { return filepath.Join(cfg.Root, "cni") }
