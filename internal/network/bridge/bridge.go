package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network/firewall"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/record"
)

// BridgeConfig configures the built-in network.
type Config struct {
	StateDir string // absolute directory of the leases, made if missing; it also distinguishes two daemons
	// of the bridge link, at most 15 characters; "" is kuri0. When the node has another link of that
	// name, a name made from StateDir is used
	Name string
	// at most one of each family; empty: a free IPv4 range and, if the kernel has IPv6, a unique local
	// /64
	Subnets []netip.Prefix
	MTU     int  // in bytes, of the bridge and of the pods' links; 0: that of the link with the default route
	Isolate bool // keep pods of different Kubernetes namespaces from reaching each other

	// put accept rules for the bridge into chains of the node's firewall that drop its packets; else
	// Notice names them
	OpenFirewall bool

	Idle time.Duration // how long the bridge and the nftables table stay after the last address was given back; 0: 10 s
}

// DefaultBridge is the name of the bridge when none is configured.
const DefaultName = "kuri0"

const defaultIdle = 10 * time.Second

// Bridge is the built-in network. See the package comment for the resources that it owns.
type Network struct {
	config Config
	key    [32]byte // of StateDir
	table  string   // of nftables

	lastErr atomic.Pointer[error] // why the bridge could not be built last time; nil when it could

	// guards the fields below, the bridge link and the tables; held for calls into the local kernel
	// only
	mu      sync.Mutex
	pool    *ipam.Pool
	fixed   []netip.Prefix    // set by configuration or as pod CIDR; empty: the bridge chooses
	numbers map[string]uint32 // of namespaces, see isolation
	ranges  []netip.Prefix    // for new pods, IPv4 first; empty until build
	link    bridgeLink        // as it was made or found last
	idle    *time.Timer       // prunes; nil when none is set
	closed  bool

	unplugged []string // links of detached pods, which may go with the pods' namespaces
	firewall  *firewall.Firewall

	workers sync.WaitGroup // background work; Close waits for it
}

// bridgeLink describes the bridge link in the kernel.
type bridgeLink struct {
	name   string
	index  int
	mtu    int
	group  uint32         // of the pods' links
	ranges []netip.Prefix // whose gateways it has, and that are masqueraded

	overLoopback bool // the table has host ports serve [::1]
}

func (l bridgeLink) forFirewall() firewall.Bridge {
	return firewall.Bridge{Name: l.name, Index: l.index, Ranges: l.ranges}
}

var linkName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// NewBridge reads the leases of an earlier process. It changes nothing in the kernel; Reclaim, Attach and Ready do.
func New(config Config) (*Network, error) {
	if !filepath.IsAbs(config.StateDir) {
		return nil, fault.New(fault.Invalid, "state directory %q of the built-in network is not an absolute path",
			config.StateDir)
	}
	if config.Name == "" {
		config.Name = DefaultName
	}
	if len(config.Name) > 15 || !linkName.MatchString(config.Name) {
		return nil, fault.New(fault.Invalid, "bridge name %q: give 1 to 15 letters, digits, '.', '_' or '-'", config.Name)
	}
	if config.MTU != 0 && (config.MTU < 1280 || config.MTU > 65535) {
		return nil, fault.New(fault.Invalid,
			"MTU %d of the built-in network: give 1280 to 65535, or 0 for that of the uplink", config.MTU)
	}
	if err := ipam.CheckRanges(config.Subnets); err != nil {
		return nil, fmt.Errorf("built-in network: %w", err)
	}
	if config.Idle == 0 {
		config.Idle = defaultIdle
	}
	record.Sweep(config.StateDir)
	pool, err := ipam.Open(filepath.Join(config.StateDir, "leases"))
	if err != nil {
		return nil, fmt.Errorf("open the leases of the built-in network: %w", err)
	}
	key := sha256.Sum256([]byte(filepath.Clean(config.StateDir)))
	b := &Network{config: config, key: key, table: "kuri-" + hex.EncodeToString(key[:4]), pool: pool,
		numbers: map[string]uint32{}, fixed: ipam.Ordered(config.Subnets)}
	b.firewall = firewall.New(firewall.Config{StateDir: config.StateDir, Comment: b.table, Names: b.names(),
		Open: config.OpenFirewall})
	if len(b.fixed) == 0 {
		if b.fixed, err = ipam.ReadPodCIDR(config.StateDir); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// CheckFormats returns an error of kind Precondition when a newer version of Kuri wrote a record below the state
// directory. It changes nothing.
func CheckFormats(stateDir string) error {
	return errors.Join(ipam.CheckLeases(filepath.Join(stateDir, "leases")), ipam.CheckPodCIDR(stateDir),
		firewall.CheckFormat(stateDir))
}

// SetPodCIDR sets the ranges that pods attached from now on get their addresses from, as a kubelet
// gives them with UpdateRuntimeConfig; at most one of each family; an empty list changes nothing.
// Running pods keep their addresses. Ranges of the configuration take precedence. The ranges
// survive a restart of the daemon: the kubelet sends them only once.
func (b *Network) SetPodCIDR(ranges []netip.Prefix) error {
	if err := ipam.CheckRanges(ranges); err != nil {
		return fmt.Errorf("pod CIDR: %w", err)
	}
	if len(ranges) == 0 {
		return nil
	}
	if len(b.config.Subnets) > 0 {
		slog.Info("the pod CIDR is not used: the built-in network has ranges in its configuration", "pod_cidr", ranges,
			"configured", b.config.Subnets)
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(b.fixed, ipam.Ordered(ranges)) {
		return nil
	}
	if err := ipam.WritePodCIDR(b.config.StateDir, ipam.Ordered(ranges)); err != nil {
		return err
	}
	b.fixed = ipam.Ordered(ranges)
	b.link.index = 0 // built for other ranges: the next attachment builds it
	return nil
}

// Ready implements [network.Network]: it returns the error of the last attempt to build the bridge,
// and tries again after an error, because no pod comes before Ready succeeds. With pods on the
// bridge it restores what was removed behind its back: a reload of the node's firewall flushes all
// tables. It never waits for an attachment in progress.
func (b *Network) Ready(context.Context) error {
	if b.mu.TryLock() {
		if !b.closed && (len(b.pool.Leases) > 0 || b.lastErr.Load() != nil) {
			if b.ensure() == nil && b.firewall.Stale() { // an error is kept in lastErr
				on := b.link.forFirewall()
				b.workers.Go(func() { b.firewall.Look(context.Background(), on) })
			}
			b.startIdle()
		}
		b.mu.Unlock()
	}
	if err := b.lastErr.Load(); err != nil {
		return *err
	}
	return nil
}

// Notice implements [network.Network].
func (b *Network) Notice() string { return b.firewall.Notice() }

// Close stops the idle timer and removes the links of pods that were just detached. Pods keep their network; a bridge
// without pods is removed.
func (b *Network) Close() error {
	b.mu.Lock()
	b.closed = true
	b.removeUnpluggedLocked()
	err := b.prune()
	b.mu.Unlock()
	b.workers.Wait()
	return err
}
