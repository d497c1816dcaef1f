package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/pelletier/go-toml/v2"

	"github.com/kuri-cri/kuri/internal/fault"
)

// File is the configuration file that is read when no other is named; it may be absent.
const File = "/etc/kuri/config.toml"

// Config is all that can be set. The keys of the TOML file are in the tags.
type Config struct {
	Listen        string `toml:"listen"`         // path of the CRI socket
	ImageListen   string `toml:"image_listen"`   // path of a second socket for the ImageService; "": the same socket
	Root          string `toml:"root"`           // images, layers, records: outlives a reboot
	State         string `toml:"state"`          // sockets, bundles: gone after a reboot
	ContainerRoot string `toml:"container_root"` // writable layers of new containers; "": in root
	LogLevel      string `toml:"log_level"`      // debug, info, warn, error
	LogFormat     string `toml:"log_format"`     // text, json
	CgroupDriver  string `toml:"cgroup_driver"`  // auto, systemd, cgroupfs
	Keeper        string `toml:"keeper"`         // path of kuri-keeper; "": beside kurid, else from PATH

	Image   Image   `toml:"image"`
	Network Network `toml:"network"`
	Pod     Pod     `toml:"pod"`
	Stream  Stream  `toml:"stream"`

	Handlers map[string]Handler `toml:"handler"` // runtime handlers beside the default one, by name
}

// Handler configures a runtime handler: how the pods of a RuntimeClass differ from the others.
type Handler struct {
	CNIConfDir string `toml:"cni_conf_dir"` // where the CNI configurations of its pods are; "": network.cni_conf_dir
	Platform   string `toml:"platform"`     // of the images of its containers, "linux/arm64"; "": this node's
}

// Image configures pulls and the image store.
type Image struct {
	CertsDirs []string `toml:"certs_dirs"` // directories of <host>/hosts.toml files; the first that has the host wins
	Parallel  int      `toml:"parallel"`   // layers of one image fetched and unpacked at once; 0: by the number of CPUs
	Pinned    []string `toml:"pinned"`     // references, or patterns, that the kubelet's garbage collection must leave alone

	StallTimeout int   `toml:"stall_timeout"` // seconds without a byte after which a mirror or registry is given up
	MinRate      int64 `toml:"min_rate"`      // bytes per second below which a mirror is left for the next host
}

// Network configures the networks that pods get.
type Network struct {
	Use        string   `toml:"use"`          // auto: CNI while it is configured, else built-in; cni; builtin
	CNIConfDir string   `toml:"cni_conf_dir"` // where CNI configurations are
	CNIBinDirs []string `toml:"cni_bin_dirs"`
	Bridge     string   `toml:"bridge"`  // name of the built-in network's bridge
	Subnets    []string `toml:"subnets"` // at most one IPv4 and one IPv6 prefix for it; none: free ones are chosen
	MTU        int      `toml:"mtu"`     // of the built-in network; 0: the uplink's
	Isolate    bool     `toml:"isolate"` // of the built-in network: keep namespaces of pods apart
}

// Pod configures pods and containers.
type Pod struct {
	ShmSize   int64 `toml:"shm_size"`   // bytes of a pod's /dev/shm
	PidsLimit int64 `toml:"pids_limit"` // processes of a container that asks for no limit; 0: none
	MaxExecs  int   `toml:"max_execs"`  // ExecSyncs at once; more wait for their turn

	Ulimits     []string `toml:"ulimits"`       // of containers' processes, "nofile=1024:524288"
	LogMaxSize  int64    `toml:"log_max_size"`  // bytes of a container's log before it is rotated; 0: the kubelet rotates it
	LogMaxFiles int      `toml:"log_max_files"` // rotated logs that are kept of a container, with log_max_size
	LogRate     int64    `toml:"log_rate"`      // bytes a second that a container may log; 0: no limit
	CDIDirs     []string `toml:"cdi_dirs"`      // of specifications of devices; the later ones win

	BlockIOConfig          string `toml:"blockio_config"`            // path of a file of block I/O classes; "": there are none
	CreateMissingHostPaths bool   `toml:"create_missing_host_paths"` // of mounts, as directories; else they are errors

	WritableLayerBytes  int64 `toml:"writable_layer_bytes"`  // that a container's writable layer may take; 0: no limit
	WritableLayerInodes int64 `toml:"writable_layer_inodes"` // likewise files and directories
}

// Stream configures the server of exec, attach and port forwarding.
type Stream struct {
	Address string `toml:"address"` // IP address on which it listens
	Port    int    `toml:"port"`    // TCP port; 0: any that is free
	Drain   int    `toml:"drain"`   // seconds that open streams may go on after kurid has ended; 0: they end with it

	TLSCert     string `toml:"tls_cert"`      // file of the certificate; "": plain HTTP
	TLSKey      string `toml:"tls_key"`       // file of its key
	TLSClientCA string `toml:"tls_client_ca"` // file of the roots of clients' certificates; "": they need none
}

// Default returns what holds when nothing is configured.
func Default() Config {
	return Config{
		Listen:       "/run/kuri/kuri.sock",
		Root:         "/var/lib/kuri",
		State:        "/run/kuri",
		LogLevel:     "info",
		LogFormat:    "text",
		CgroupDriver: "auto",
		Image:        Image{CertsDirs: []string{"/etc/kuri/certs.d", "/etc/containerd/certs.d"}, StallTimeout: 60, MinRate: 16 << 10},
		Network: Network{
			Use:        "auto",
			CNIConfDir: "/etc/cni/net.d",
			CNIBinDirs: []string{"/opt/cni/bin"},
			Bridge:     "kuri0",
		},
		Pod:    Pod{ShmSize: 64 << 20, MaxExecs: 256, LogMaxFiles: 4, CDIDirs: []string{"/etc/cdi", "/var/run/cdi"}},
		Stream: Stream{Address: "127.0.0.1", Drain: 4 * 3600},
	}
}

// Read returns the defaults changed by the file at path. An absent file is an error of kind NotFound, so that a caller
// can forgive it for the default path only; anything wrong inside is of kind Invalid and names the key.
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
		return fault.New(fault.Invalid, "%s: unknown key %s; docs/configuration.md lists the keys", path, strings.Join(keys, ", "))
	case errors.As(err, &bad):
		row, col := bad.Position()
		return fault.New(fault.Invalid, "%s: line %d, column %d, key %q: %w", path, row, col, strings.Join(bad.Key(), "."), err)
	case err != nil:
		return fault.New(fault.Invalid, "%s: %w", path, err)
	}
	return nil
}

// Check tells what is wrong with the values, each by its key.
func (c *Config) Check() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fault.New(fault.Invalid, "%s: "+format, append([]any{key}, args...)...))
	}
	paths := map[string]*string{
		"listen": &c.Listen, "image_listen": &c.ImageListen, "root": &c.Root, "state": &c.State, "keeper": &c.Keeper,
		"container_root": &c.ContainerRoot,
	}
	for _, key := range []string{"listen", "image_listen", "root", "state", "keeper", "container_root"} {
		p := paths[key]
		*p = strings.TrimPrefix(*p, "unix://")
		if *p == "" && (key == "image_listen" || key == "keeper" || key == "container_root") {
			continue
		}
		if !filepath.IsAbs(*p) || filepath.Clean(*p) == "/" {
			bad(key, "%q must be an absolute path below /", *p)
		}
		*p = filepath.Clean(*p)
	}
	// A socket's path has 108 bytes at most (unix(7)), and the kernel says no more than "invalid argument".
	for key, p := range map[string]string{"listen": c.Listen, "image_listen": c.ImageListen, "state": filepath.Join(c.State, "keeper.sock")} {
		if len(p) > 107 {
			bad(key, "%q is longer than the 107 bytes that a socket's path can have", p)
		}
	}
	if c.ImageListen == c.Listen {
		c.ImageListen = ""
	}
	if c.Root == c.State {
		bad("state", "%q is also root; they must differ", c.State)
	}
	c.checkContainerRoot(bad)
	if _, err := netip.ParseAddr(c.Stream.Address); err != nil {
		bad("stream.address", "%q is not an IP address", c.Stream.Address)
	}
	if c.Stream.Port < 0 || c.Stream.Port > 65535 {
		bad("stream.port", "%d is not between 0 and 65535 (0: any free port)", c.Stream.Port)
	}
	if c.Stream.Drain < 0 || c.Stream.Drain > 30*24*3600 {
		bad("stream.drain", "%d is not between 0 and 2592000 seconds (0: streams end with kurid)", c.Stream.Drain)
	}
	if (c.Stream.TLSCert == "") != (c.Stream.TLSKey == "") {
		bad("stream.tls_cert", "tls_cert and tls_key go together")
	}
	if c.Stream.TLSClientCA != "" && c.Stream.TLSCert == "" {
		bad("stream.tls_client_ca", "it needs tls_cert and tls_key")
	}
	for key, path := range map[string]string{"tls_cert": c.Stream.TLSCert, "tls_key": c.Stream.TLSKey, "tls_client_ca": c.Stream.TLSClientCA} {
		if path != "" && !filepath.IsAbs(path) {
			bad("stream."+key, "%q must be an absolute path", path)
		}
	}
	oneOf := func(key, val string, allowed ...string) {
		for _, a := range allowed {
			if val == a {
				return
			}
		}
		bad(key, "%q is not one of %s", val, strings.Join(allowed, ", "))
	}
	oneOf("log_level", c.LogLevel, "debug", "info", "warn", "error")
	oneOf("log_format", c.LogFormat, "text", "json")
	oneOf("cgroup_driver", c.CgroupDriver, "auto", "systemd", "cgroupfs")
	oneOf("network.use", c.Network.Use, "auto", "cni", "builtin")
	if c.Image.Parallel < 0 || c.Image.Parallel > 64 {
		bad("image.parallel", "%d is not between 0 and 64", c.Image.Parallel)
	}
	if c.Image.StallTimeout < 1 || c.Image.StallTimeout > 3600 {
		bad("image.stall_timeout", "%d is not between 1 and 3600 seconds", c.Image.StallTimeout)
	}
	if c.Image.MinRate < 1 {
		bad("image.min_rate", "%d is not a number of bytes per second (1 turns it off)", c.Image.MinRate)
	}
	for _, name := range c.Image.Pinned {
		if _, err := path.Match(name, ""); err != nil {
			bad("image.pinned", "%q is not a pattern: %v", name, err)
		}
	}
	if c.Network.MTU != 0 && (c.Network.MTU < 1280 || c.Network.MTU > 65535) {
		bad("network.mtu", "%d is not between 1280 and 65535 (0: the uplink's)", c.Network.MTU)
	}
	if n := len(c.Network.Bridge); n == 0 || n > 15 || strings.ContainsAny(c.Network.Bridge, "/ \t:") {
		bad("network.bridge", "%q is not an interface name of 1 to 15 characters", c.Network.Bridge)
	}
	if _, err := c.Network.Prefixes(); err != nil {
		errs = append(errs, err)
	}
	if c.Pod.ShmSize < 4096 {
		bad("pod.shm_size", "%d is less than a page", c.Pod.ShmSize)
	}
	if c.Pod.PidsLimit < 0 {
		bad("pod.pids_limit", "%d is negative (0: no limit)", c.Pod.PidsLimit)
	}
	if c.Pod.MaxExecs < 1 || c.Pod.MaxExecs > 100000 {
		bad("pod.max_execs", "%d is not between 1 and 100000", c.Pod.MaxExecs)
	}
	if c.Pod.LogMaxSize != 0 && c.Pod.LogMaxSize < 1<<20 {
		bad("pod.log_max_size", "%d is less than 1 MiB (0: no limit)", c.Pod.LogMaxSize)
	}
	if c.Pod.LogMaxFiles < 0 || c.Pod.LogMaxFiles > 1000 {
		bad("pod.log_max_files", "%d is not between 0 and 1000", c.Pod.LogMaxFiles)
	}
	if c.Pod.LogRate != 0 && c.Pod.LogRate < 64<<10 {
		bad("pod.log_rate", "%d is less than 64 KiB a second (0: no limit)", c.Pod.LogRate)
	}
	if c.Pod.WritableLayerBytes != 0 && c.Pod.WritableLayerBytes < 64<<10 {
		bad("pod.writable_layer_bytes", "%d is less than 64 KiB (0: no limit)", c.Pod.WritableLayerBytes)
	}
	if c.Pod.WritableLayerInodes != 0 && c.Pod.WritableLayerInodes < 16 {
		bad("pod.writable_layer_inodes", "%d is less than 16 (0: no limit)", c.Pod.WritableLayerInodes)
	}
	if c.Pod.BlockIOConfig != "" && !filepath.IsAbs(c.Pod.BlockIOConfig) {
		bad("pod.blockio_config", "%q must be an absolute path", c.Pod.BlockIOConfig)
	}
	for _, dir := range c.Pod.CDIDirs {
		if !filepath.IsAbs(dir) {
			bad("pod.cdi_dirs", "%q must be an absolute path", dir)
		}
	}
	c.checkHandlers(bad)
	return errors.Join(errs...)
}

// checkContainerRoot tells bad why writable layers cannot lie in container_root: what Kuri keeps elsewhere, and what it
// removes there, must not be mixed up.
func (c *Config) checkContainerRoot(bad func(key, format string, args ...any)) {
	if c.ContainerRoot == "" {
		return
	}
	taken := []string{c.State}
	for _, name := range []string{"images", "layers", "pods", "cni", "tmp"} {
		taken = append(taken, filepath.Join(c.Root, name))
	}
	for _, dir := range taken {
		if within(c.ContainerRoot, dir) {
			bad("container_root", "%q is in %s, which has other things; take a directory outside", c.ContainerRoot, dir)
		}
	}
	if c.ContainerRoot == c.Root {
		bad("container_root", "%q is also root; leave it out, or take another directory", c.ContainerRoot)
	}
	for _, dir := range []string{c.Root, c.State} {
		if within(dir, filepath.Join(c.ContainerRoot, "containers")) {
			bad("container_root", "%s lies among the writable layers of %q; take another directory", dir, c.ContainerRoot)
		}
	}
}

// within tells whether a clean path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

// WritableRoot is the directory below which the writable layers of new containers lie.
func (c *Config) WritableRoot() string {
	if c.ContainerRoot != "" {
		return c.ContainerRoot
	}
	return c.Root
}

// handlerName is what a RuntimeClass can name as its handler: a DNS label (RFC 1123), as the Kubernetes API has it.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// checkHandlers tells bad what is wrong with the runtime handlers.
func (c *Config) checkHandlers(bad func(key, format string, args ...any)) {
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		key := "handler." + name
		if !handlerName.MatchString(name) {
			bad(key, "%q is not the name of a runtime handler: at most 63 lower-case letters, digits and -, at both ends a letter or a digit", name)
		}
		if dir := c.Handlers[name].CNIConfDir; dir != "" && !filepath.IsAbs(dir) {
			bad(key+".cni_conf_dir", "%q must be an absolute path", dir)
		}
		if want := c.Handlers[name].Platform; want != "" {
			if p, err := platforms.Parse(want); err != nil || p.OS != "linux" {
				bad(key+".platform", "%q is not a platform of Linux, as linux/arm64 or linux/arm/v7", want)
			}
		}
	}
}

// Prefixes returns network.subnets parsed: at most one prefix of each IP version.
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

// Map returns the values by the keys of the file, for who wants to see what is in force.
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
