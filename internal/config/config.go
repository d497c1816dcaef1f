package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/kuri-cri/kuri/internal/fault"
)

// File is the default configuration file. It may be absent.
const File = "/etc/kuri/config.toml"

// Config has all settings. The tags are the keys of the TOML file.
type Config struct {
	Listen        string `toml:"listen"`         // path of the CRI socket
	ImageListen   string `toml:"image_listen"`   // path of a second socket for the ImageService; "": the same socket
	MetricsListen string `toml:"metrics_listen"` // "host:port" of kurid's own Prometheus metrics; "": none
	// URL of an OpenTelemetry collector, OTLP over gRPC; "": the environment's
	TraceEndpoint string `toml:"trace_endpoint"`
	// path of a socket on which a kubelet's cAdvisor finds labels; "": none
	CadvisorListen string `toml:"cadvisor_listen"`
	Root           string `toml:"root"`           // images, layers, records; survives a reboot
	State          string `toml:"state"`          // sockets, bundles; gone after a reboot
	ContainerRoot  string `toml:"container_root"` // writable layers of new containers; "": in root
	LogLevel       string `toml:"log_level"`      // debug, info, warn, error
	LogFormat      string `toml:"log_format"`     // text, json
	CgroupDriver   string `toml:"cgroup_driver"`  // auto, systemd, cgroupfs
	ScopePrefix    string `toml:"scope_prefix"`   // prefix of the containers' systemd scopes: <prefix>-<id>.scope
	Keeper         string `toml:"keeper"`         // path of kuri-keeper; "": beside kurid, otherwise from PATH

	Replace bool `toml:"-"` // take over from a daemon that serves these directories; set by a flag only

	LogSlow map[string]float64 `toml:"log_slow"` // seconds after which a call is logged as slow, by method; 0: never

	Image   Image   `toml:"image"`
	Network Network `toml:"network"`
	Pod     Pod     `toml:"pod"`
	Stream  Stream  `toml:"stream"`

	Handlers map[string]Handler `toml:"handler"` // additional runtime handlers, by name
}

// Handler configures a runtime handler: how the pods of a RuntimeClass differ from others.
type Handler struct {
	CNIConfDir string `toml:"cni_conf_dir"` // CNI configurations of its pods; "": network.cni_conf_dir
	Platform   string `toml:"platform"`     // platform of its images, such as "linux/arm64"; "": this node's
}

// Image configures pulls and the image store.
type Image struct {
	CertsDirs []string `toml:"certs_dirs"` // directories of <host>/hosts.toml files; the first one with the host wins
	Parallel  int      `toml:"parallel"`   // layers fetched and unpacked at once; 0: by the number of CPUs
	Pinned    []string `toml:"pinned"`     // references or patterns that the kubelet must not collect

	StallTimeout int   `toml:"stall_timeout"` // seconds without data before a mirror or registry is given up
	MinRate      int64 `toml:"min_rate"`      // bytes per second below which the next host is tried

	VerifierDir     string `toml:"verifier_dir"`     // programs that must accept an image before it is pulled; "": none
	VerifierTimeout int    `toml:"verifier_timeout"` // seconds for each program

	Sources map[string]Source `toml:"source"` // overrides for single hosts, by "host" or "host:port"
}

// Source configures one registry or mirror by its host.
type Source struct {
	StallTimeout int   `toml:"stall_timeout"` // 0: image.stall_timeout
	MinRate      int64 `toml:"min_rate"`      // 0: image.min_rate
}

// Network configures pod networks.
type Network struct {
	Use        string   `toml:"use"`          // auto: CNI if it is configured, otherwise built-in; cni; builtin
	CNIConfDir string   `toml:"cni_conf_dir"` // directory of CNI configurations
	CNIBinDirs []string `toml:"cni_bin_dirs"`
	Bridge     string   `toml:"bridge"`  // name of the built-in network's bridge
	Subnets    []string `toml:"subnets"` // at most one IPv4 and one IPv6 prefix for it; empty: free ones are chosen
	MTU        int      `toml:"mtu"`     // of the built-in network; 0: the uplink's
	Isolate    bool     `toml:"isolate"` // of the built-in network: separate pods of different namespaces

	// of the built-in network: add rules for it to dropping chains of the node's firewall
	OpenFirewall bool `toml:"open_firewall"`
}

// Pod configures pods and containers.
type Pod struct {
	ShmSize   int64 `toml:"shm_size"`   // size of a pod's /dev/shm in bytes
	PidsLimit int64 `toml:"pids_limit"` // processes of a container without its own limit; 0: no limit
	MaxExecs  int   `toml:"max_execs"`  // concurrent ExecSync calls; further ones wait

	Ulimits []string `toml:"ulimits"` // default ulimits of containers, such as "nofile=1024:524288"
	// bytes of a container's log before it is rotated; 0: the kubelet rotates it
	LogMaxSize  int64    `toml:"log_max_size"`
	LogMaxFiles int      `toml:"log_max_files"` // rotated logs kept per container, with log_max_size
	LogRate     int64    `toml:"log_rate"`      // bytes per second that a container may log; 0: no limit
	CDIDirs     []string `toml:"cdi_dirs"`      // directories of CDI specifications; later ones win

	BlockIOConfig string `toml:"blockio_config"` // path of a file with block I/O classes; "": none
	// of mounts, as directories; otherwise a missing path is an error
	CreateMissingHostPaths bool `toml:"create_missing_host_paths"`

	UnprivilegedPorts bool `toml:"unprivileged_ports"` // all users of a pod network may listen on ports below 1024
	UnprivilegedPing  bool `toml:"unprivileged_ping"`  // all groups of a pod network may send ICMP echo requests

	WritableLayerBytes  int64 `toml:"writable_layer_bytes"`  // limit of a container's writable layer; 0: no limit
	WritableLayerInodes int64 `toml:"writable_layer_inodes"` // the same for files and directories
}

// Stream configures the server of exec, attach and port forwarding.
type Stream struct {
	Address string `toml:"address"` // IP address to listen on
	Port    int    `toml:"port"`    // TCP port; 0: any free port
	Drain   int    `toml:"drain"`   // seconds that open streams may go on after kurid has ended; 0: they end with it

	MaxStreams int `toml:"max_streams"` // maximum of open and promised streams

	TLSCert     string `toml:"tls_cert"`      // certificate file; "": plain HTTP
	TLSKey      string `toml:"tls_key"`       // key file
	TLSClientCA string `toml:"tls_client_ca"` // file with the CAs of client certificates; "": none required
}

// Default returns the default configuration.
func Default() Config {
	return Config{
		Listen:       "/run/kuri/kuri.sock",
		Root:         "/var/lib/kuri",
		State:        "/run/kuri",
		LogLevel:     "info",
		LogFormat:    "text",
		CgroupDriver: "auto",
		ScopePrefix:  "cri-containerd",
		LogSlow:      defaultSlow(),
		Image: Image{CertsDirs: []string{"/etc/kuri/certs.d", "/etc/containerd/certs.d"}, StallTimeout: 60,
			MinRate: 16 << 10, VerifierTimeout: 10},
		Network: Network{
			Use:        "auto",
			CNIConfDir: "/etc/cni/net.d",
			CNIBinDirs: []string{"/opt/cni/bin"},
			Bridge:     "kuri0",
		},
		Pod: Pod{
			ShmSize: 64 << 20, MaxExecs: 256, LogMaxFiles: 4, CDIDirs: []string{"/etc/cdi", "/var/run/cdi"},
			UnprivilegedPorts: true, UnprivilegedPing: true,
		},
		Stream: Stream{Address: "127.0.0.1", Drain: 4 * 3600, MaxStreams: 1000},
	}
}

// defaultSlow returns the default of log_slow, in seconds: far above normal durations and below a
// kubelet's timeouts. The grace period of a stop does not count.
func defaultSlow() map[string]float64 {
	return map[string]float64{
		"RunPodSandbox": 5, "StopPodSandbox": 10, "RemovePodSandbox": 10, "UpdatePodSandboxResources": 2,
		"CreateContainer": 5, "StartContainer": 5, "StopContainer": 10, "RemoveContainer": 10,
		"UpdateContainerResources": 2,
		"PullImage":                300, "RemoveImage": 10,
		"Status": 2, "ListPodSandbox": 1, "PodSandboxStatus": 1, "ListContainers": 1, "ContainerStatus": 1,
		"ListContainerStats": 1, "ListPodSandboxStats": 1,
	}
}

// Read returns the defaults overridden by the file at path. A missing file is an error of kind
// NotFound, which a caller may ignore for the default path. Any error in the file is of kind
// Invalid and names the key.
func Read(path string) (Config, error) {
	c := Default()
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, fault.New(fault.NotFound, "configuration file: %w", err)
	}
	if err != nil {
		return c, fmt.Errorf("configuration file: %w", err)
	}
	return c, c.parse(path, body)
}

func (c *Config) parse(path string, body []byte) error {
	err := toml.NewDecoder(bytes.NewReader(body)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		var keys []string
		for _, e := range unknown.Errors {
			row, _ := e.Position()
			keys = append(keys, fmt.Sprintf("%s (line %d)", strings.Join(e.Key(), "."), row))
		}
		return fault.New(fault.Invalid, "%s: unknown key %s; docs/configuration.md lists the keys", path,
			strings.Join(keys, ", "))
	case errors.As(err, &bad):
		row, col := bad.Position()
		return fault.New(fault.Invalid, "%s: line %d, column %d, key %q: %w", path, row, col,
			strings.Join(bad.Key(), "."), err)
	case err != nil:
		return fault.New(fault.Invalid, "%s: %w", path, err)
	}
	return nil
}

// WritableRoot returns the directory below which writable layers of new containers are created.
func (c *Config) WritableRoot() string {
	if c.ContainerRoot != "" {
		return c.ContainerRoot
	}
	return c.Root
}

// Prefixes returns the parsed network.subnets: at most one prefix per IP version.
func (n Network) Prefixes() ([]netip.Prefix, error) {
	var out []netip.Prefix
	seen := map[bool]bool{}
	for _, s := range n.Subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fault.New(fault.Invalid, "network.subnets: %w", err)
		}
		if seen[p.Addr().Is4()] {
			return nil, fault.New(fault.Invalid, "network.subnets: %s is a second prefix of the same IP version", s)
		}
		seen[p.Addr().Is4()] = true
		out = append(out, p.Masked())
	}
	return out, nil
}

// Map returns the values by the keys of the file, for display.
func (c Config) Map() (map[string]any, error) {
	body, err := toml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode the configuration: %w", err)
	}
	m := make(map[string]any)
	if err := toml.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("encode the configuration: %w", err)
	}
	return m, nil
}
