package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/ipam"
	"github.com/kuri-cri/kuri/internal/network/netns"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/record"
	"github.com/kuri-cri/kuri/internal/undo"
)

// CNIConfig configures the network of CNI plugins.
type Config struct {
	ConfDir string // directory of configurations; the first by name is used. Usually /etc/cni/net.d
	// the same for pods of runtime handlers that have directories of their own, see Pod.CNIConfDir: GC
	// goes there too
	HandlerDirs []string
	BinDirs     []string      // search path of plugins. Usually /opt/cni/bin
	CacheDir    string        // directory of attachments; absolute, made if missing
	Timeout     time.Duration // for one run of one plugin; 0: 2 minutes
}

const defaultCNITimeout = 2 * time.Minute

// Network attaches pods by the plugins of a CNI configuration, which is read for every pod. It
// records the configuration of each ADD, so that DEL runs the same plugins.
type Network struct {
	config Config
	cni    *libcni.CNIConfig

	// held for writing by GC alone, which the specification does not allow beside ADD and DEL; never
	// waited for in writing
	gc sync.RWMutex

	inherited sync.Map // ids of the pods that an earlier daemon attached, whose plugins may run still

	rangesMu sync.Mutex     // guards ranges
	ranges   []netip.Prefix // the node's pod CIDR, for plugins that ask for it

	statusMu sync.Mutex // one STATUS at a time; guards the fields below
	statusAt time.Time
	statusOf string
	status   error
}

const attachmentVersion = 1

// attachment is the record of one ADD, written before it.
type attachment struct {
	List    []byte         `json:"list"` // the configuration, as JSON
	PodID   string         `json:"pod_id"`
	Netns   string         `json:"netns"`
	NetnsID string         `json:"netns_id,omitempty"` // see netns.Identify; "" in records of earlier versions
	Args    [][2]string    `json:"args"`
	Runtime map[string]any `json:"runtime"` // capability arguments
}

// CheckFormats returns an error of kind Precondition when a newer version of Kuri wrote a record
// below the cache directory. It changes nothing.
func CheckFormats(cacheDir string) error {
	return errors.Join(ipam.CheckPodCIDR(cacheDir), record.Newer(attachmentVersion, cacheDir, "attachments/*.json"))
}

// NewCNI makes the directories that it needs below CacheDir. It reads no configuration yet.
func New(config Config) (*Network, error) {
	if config.Timeout == 0 {
		config.Timeout = defaultCNITimeout
	}
	if !filepath.IsAbs(config.CacheDir) {
		return nil, fault.New(fault.Invalid, "CNI cache directory %q is not an absolute path", config.CacheDir)
	}
	if err := os.MkdirAll(filepath.Join(config.CacheDir, "attachments"), 0o700); err != nil { // an attachment will say so
		slog.Error("the directory of CNI attachments cannot be made", "err", err)
	}
	record.Sweep(config.CacheDir)
	record.Sweep(filepath.Join(config.CacheDir, "attachments"))
	c := &Network{config: config, cni: libcni.NewCNIConfigWithCacheDir(config.BinDirs, config.CacheDir,
		&plugins{timeout: config.Timeout})}
	var err error
	if c.ranges, err = ipam.ReadPodCIDR(config.CacheDir); err != nil {
		return nil, err
	}
	attached, err := c.Attached()
	if err != nil {
		return nil, err
	}
	for _, id := range attached {
		c.inherited.Store(id, true)
	}
	return c, nil
}

// inherits reports whether an earlier daemon attached the pod and its plugins may still run.
func (c *Network) inherits(id string) bool {
	_, ok := c.inherited.Load(id)
	return ok
}

// SetPodCIDR sets the ranges for plugins with the capability ipRanges, for pods attached from now
// on. It survives a restart.
func (c *Network) SetPodCIDR(ranges []netip.Prefix) error {
	if len(ranges) == 0 {
		return nil
	}
	c.rangesMu.Lock()
	defer c.rangesMu.Unlock()
	if slices.Equal(c.ranges, ipam.Ordered(ranges)) {
		return nil
	}
	if err := ipam.WritePodCIDR(c.config.CacheDir, ipam.Ordered(ranges)); err != nil {
		return err
	}
	c.ranges = ipam.Ordered(ranges)
	return nil
}

func (c *Network) podCIDR() []netip.Prefix {
	c.rangesMu.Lock()
	defer c.rangesMu.Unlock()
	return c.ranges
}

// Attach implements [network.Network].
func (c *Network) Attach(ctx context.Context, pod network.Pod) (*network.Result, error) {
	r, err := c.attach(ctx, pod)
	if err != nil {
		return nil, fmt.Errorf("attach pod %s/%s to the CNI network: %w", pod.Namespace, pod.Name, err)
	}
	return r, nil
}

func (c *Network) attach(ctx context.Context, pod network.Pod) (*network.Result, error) {
	c.gc.RLock()
	defer c.gc.RUnlock()
	back := undo.New(ctx)
	defer back.Run()

	// 1. Record the intent.
	list, err := load(c.dirOf(pod))
	if err != nil {
		return nil, err
	}
	if err := c.installed(list); err != nil {
		return nil, err
	}
	a, err := newAttachment(list, pod, c.podCIDR())
	if err != nil {
		return nil, err
	}
	if a.NetnsID = netns.Identify(pod.NetnsPath); a.NetnsID == "" {
		return nil, fault.New(fault.Precondition, "%s is not a network namespace", pod.NetnsPath)
	}
	if _, err := os.Stat(c.path(pod.ID)); err == nil {
		return nil, fault.New(fault.Exists, "the pod has a network already; detach it first")
	}
	if err := network.WriteRecord(c.path(pod.ID), attachmentVersion, a); err != nil {
		return nil, err
	}
	failpoint.At("attach network by CNI: intent recorded")
	back.Add("run CNI DEL after a failed ADD", func(ctx context.Context) error {
		return c.del(context.WithoutCancel(ctx), pod.ID) // a plugin has its own time
	})

	// 2. ADD. A plugin that fails half-way leaves things; DEL is specified to take them away.
	added, err := c.cni.AddNetworkList(ctx, list, a.runtimeConf())
	if err != nil {
		return nil, fault.As(fault.Unavailable, fmt.Errorf("network %s: %w", list.Name, err))
	}
	failpoint.At("attach network by CNI: added")
	result, err := readResult(added, pod.NetnsPath)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "network %s: %w", list.Name, err)
	}
	result.Network = list.Name
	result.HostPorts = pod.HostPorts()
	back.Release()
	return result, nil
}

// newAttachment returns the record of an ADD, with the arguments for the plugins.
func newAttachment(list *libcni.NetworkConfigList, pod network.Pod, podCIDR []netip.Prefix) (*attachment, error) {
	a := &attachment{List: list.Bytes, PodID: pod.ID, Netns: pod.NetnsPath, Runtime: map[string]any{}}
	if !network.ValidID(pod.ID) {
		return nil, fault.New(fault.Invalid, "pod ID %q is not 64 lower-case hex digits", pod.ID)
	}
	for _, arg := range [][2]string{
		{"IgnoreUnknown", "1"},
		{"K8S_POD_NAMESPACE", pod.Namespace},
		{"K8S_POD_NAME", pod.Name},
		{"K8S_POD_INFRA_CONTAINER_ID", pod.ID},
		{"K8S_POD_UID", pod.UID},
	} {
		if strings.ContainsAny(arg[1], ";=\x00") { // CNI_ARGS is K=V;K=V and knows no quoting
			return nil, fault.New(fault.Invalid, "%s %q: CNI cannot pass on ';', '=' or a zero byte", arg[0], arg[1])
		}
		a.Args = append(a.Args, arg)
	}
	if err := a.addCapabilities(list, pod, podCIDR); err != nil {
		return nil, err
	}
	return a, nil
}

func (a *attachment) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: a.PodID, NetNS: a.Netns, IfName: network.Interface, Args: a.Args,
		CapabilityArgs: a.Runtime}
}

// readResult returns the part of a plugin's result that belongs to the pod's eth0.
func readResult(added types.Result, netns string) (*network.Result, error) {
	r, err := types100.NewResultFromResult(added)
	if err != nil {
		return nil, fmt.Errorf("read the plugins' result: %w", err)
	}
	result := &network.Result{By: network.ByCNI, Interface: network.Interface}
	ours := -1
	for i, l := range r.Interfaces {
		if l != nil && l.Name == network.Interface && l.Sandbox == netns {
			ours, result.MAC = i, l.Mac
		}
	}
	for _, ip := range r.IPs {
		if ip == nil || ip.Interface != nil && ours >= 0 && *ip.Interface != ours {
			continue
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			continue
		}
		result.IPs = append(result.IPs, a.Unmap())
		if g, ok := netip.AddrFromSlice(ip.Gateway); ok {
			result.Gateways = append(result.Gateways, g.Unmap())
		}
	}
	if len(result.IPs) == 0 {
		return nil, errors.New("its plugins gave the pod no address")
	}
	return result, nil
}

// Detach implements [network.Network]: DEL with the configuration and the arguments of the ADD.
func (c *Network) Detach(ctx context.Context, pod network.Pod, _ *network.Result) error {
	c.gc.RLock()
	defer c.gc.RUnlock()
	if err := c.del(ctx, pod.ID); err != nil {
		return fmt.Errorf("detach pod %s from the CNI network: %w", pod.Label(), err)
	}
	return nil
}

func (c *Network) del(ctx context.Context, id string) error {
	if !network.ValidID(id) {
		return nil // never attached, and not the name of a record
	}
	a, list, err := c.kept(id)
	if errors.Is(err, fault.NotFound) {
		return nil // never attached, or detached already
	}
	if errors.Is(err, fault.Corrupt) {
		slog.Warn("the record of a CNI attachment cannot be read and is set aside; its plugins may have left something",
			"pod", id, "err", err)
		return record.SetAside(c.path(id))
	}
	if err != nil {
		return err
	}
	if c.inherits(id) {
		if err := endOrphans(id); err != nil {
			return err
		}
		c.inherited.Delete(id)
	}
	rt := a.runtimeConf()
	if !a.netnsThere() {
		rt.NetNS = "" // the specification's value for a namespace that is gone
	}
	if err := c.cni.DelNetworkList(ctx, list, rt); err != nil {
		return fault.As(fault.Unavailable, fmt.Errorf("network %s: %w", list.Name, err))
	}
	failpoint.At("detach network by CNI: deleted")
	if err := os.Remove(c.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	failpoint.At("detach network by CNI: record removed")
	return nil
}

// netnsThere reports whether the pod's namespace is still at its path. If another namespace is there, no plugin
// may remove its links.
func (a *attachment) netnsThere() bool {
	if a.NetnsID == "" {
		return netns.Is(a.Netns)
	}
	return netns.Identify(a.Netns) == a.NetnsID
}

// kept reads the record of a pod's ADD, and the configuration in it.
func (c *Network) kept(id string) (*attachment, *libcni.NetworkConfigList, error) {
	var a attachment
	if err := record.Read(c.path(id), attachmentVersion, &a); err != nil {
		return nil, nil, err
	}
	list, err := libcni.NetworkConfFromBytes(a.List)
	if err != nil {
		return nil, nil, fault.New(fault.Corrupt, "read the kept configuration: %w", err)
	}
	return &a, list, nil
}

// Attached lists the IDs of the pods that ADD was begun for and DEL has not succeeded for.
func (c *Network) Attached() ([]string, error) {
	files, err := filepath.Glob(c.path("*"))
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".json")
	}
	return files, nil
}

// RecordPath returns the path of the record of a pod's ADD.
func (c *Network) RecordPath(podID string) string { return c.path(podID) }

func (c *Network) path(podID string) string {
	return filepath.Join(c.config.CacheDir, "attachments", podID+".json")
}
