package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/platforms"

	"github.com/kuri-cri/kuri/internal/fault"
)

// scopePrefix matches the part before "-<id>.scope" in a unit's name, of any length. (A bound in a
// pattern would make its program as long, which kurid compiles at each start.)
var scopePrefix = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9_])?$`)

// Check validates the values. Each error names the key.
func (c *Config) Check() error {
	var found problems
	c.checkPaths(&found)
	c.checkContainerRoot(&found)
	found.oneOf("log_level", c.LogLevel, "debug", "info", "warn", "error")
	found.oneOf("log_format", c.LogFormat, "text", "json")
	c.checkSlow(&found)
	found.oneOf("cgroup_driver", c.CgroupDriver, "auto", "systemd", "cgroupfs")
	if len(c.ScopePrefix) > 32 || !scopePrefix.MatchString(c.ScopePrefix) {
		found.bad("scope_prefix", "%q cannot begin a scope's name: letters, digits, _ and - are allowed, at most 32, "+
			"with a letter first and no - last", c.ScopePrefix)
	}
	if c.MetricsListen != "" {
		if _, err := netip.ParseAddrPort(c.MetricsListen); err != nil {
			found.bad("metrics_listen", "%q is not an IP address with a port, as 127.0.0.1:9567", c.MetricsListen)
		}
	}
	if c.TraceEndpoint != "" {
		if u, err := url.Parse(c.TraceEndpoint); err != nil ||
			u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			found.bad("trace_endpoint", "%q is not a URL, as http://127.0.0.1:4317", c.TraceEndpoint)
		}
	}
	c.checkImage(&found)
	c.checkNetwork(&found)
	c.checkPod(&found)
	c.checkStream(&found)
	c.checkHandlers(&found)
	return errors.Join(found...)
}

// checkSlow validates the methods against the defaults.
func (c *Config) checkSlow(found *problems) {
	known := defaultSlow()
	for _, method := range slices.Sorted(maps.Keys(c.LogSlow)) {
		if _, ok := known[method]; !ok {
			found.bad("log_slow", "%q is not one of %s", method, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		if s := c.LogSlow[method]; !(s >= 0 && s < 1e6) {
			found.bad("log_slow."+method, "%v is not a number of seconds; 0 for never", s)
		}
	}
}

// problems are the errors found so far.
type problems []error

// bad adds an error for the value of a key.
func (p *problems) bad(key, format string, args ...any) {
	*p = append(*p, fault.New(fault.Invalid, "%s: "+format, append([]any{key}, args...)...))
}

func (p *problems) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		p.bad(key, "%q is not one of %s", value, strings.Join(allowed, ", "))
	}
}

// checkPaths validates and cleans the paths.
func (c *Config) checkPaths(found *problems) {
	paths := map[string]*string{
		"listen": &c.Listen, "image_listen": &c.ImageListen, "root": &c.Root, "state": &c.State, "keeper": &c.Keeper,
		"container_root": &c.ContainerRoot, "cadvisor_listen": &c.CadvisorListen,
	}
	for _, key := range []string{"listen", "image_listen", "root", "state", "keeper", "container_root",
		"cadvisor_listen"} {
		p := paths[key]
		*p = strings.TrimPrefix(*p, "unix://")
		if *p == "" && (key == "image_listen" || key == "keeper" || key == "container_root" ||
			key == "cadvisor_listen") {
			continue
		}
		if !filepath.IsAbs(*p) || filepath.Clean(*p) == "/" {
			found.bad(key, "%q must be an absolute path below /", *p)
		}
		*p = filepath.Clean(*p)
	}
	// The limit for the path of a socket is 108 bytes (unix(7)), and the kernel only says "invalid
	// argument".
	for key, p := range map[string]string{"listen": c.Listen, "image_listen": c.ImageListen,
		"cadvisor_listen": c.CadvisorListen, "state": filepath.Join(c.State, "keeper.sock")} {
		if len(p) > 107 {
			found.bad(key, "%q is longer than the 107 bytes that a socket's path can have", p)
		}
	}
	if c.ImageListen == c.Listen {
		c.ImageListen = ""
	}
	if c.CadvisorListen != "" && (c.CadvisorListen == c.Listen || c.CadvisorListen == c.ImageListen) {
		found.bad("cadvisor_listen", "%q is another socket already; they must differ", c.CadvisorListen)
	}
	if c.Root == c.State {
		found.bad("state", "%q is also root; they must differ", c.State)
	}
}

// checkContainerRoot checks that container_root does not overlap with directories in which Kuri
// keeps or removes other things.
func (c *Config) checkContainerRoot(found *problems) {
	if c.ContainerRoot == "" {
		return
	}
	taken := []string{c.State}
	for _, name := range []string{"images", "layers", "pods", "cni", "tmp"} {
		taken = append(taken, filepath.Join(c.Root, name))
	}
	for _, dir := range taken {
		if within(c.ContainerRoot, dir) {
			found.bad("container_root", "%q is in %s, which has other things; take a directory outside",
				c.ContainerRoot, dir)
		}
	}
	if c.ContainerRoot == c.Root {
		found.bad("container_root", "%q is also root; leave it out, or take another directory", c.ContainerRoot)
	}
	for _, dir := range []string{c.Root, c.State} {
		if within(dir, filepath.Join(c.ContainerRoot, "containers")) {
			found.bad("container_root", "%s lies among the writable layers of %q; take another directory", dir,
				c.ContainerRoot)
		}
	}
}

// within reports whether a clean path is dir or below dir.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+"/")
}

func (c *Config) checkImage(found *problems) {
	if c.Image.Parallel < 0 || c.Image.Parallel > 64 {
		found.bad("image.parallel", "%d is not between 0 and 64", c.Image.Parallel)
	}
	found.limits("image", c.Image.StallTimeout, c.Image.MinRate)
	for _, host := range slices.Sorted(maps.Keys(c.Image.Sources)) {
		s, key := c.Image.Sources[host], fmt.Sprintf("image.source.%q", host)
		if u, err := url.Parse("https://" + host); err != nil || host == "" || u.Host != host || u.User != nil {
			found.bad(key, "%q is not a host, as registry.example or mirror.example:5000", host)
		}
		found.limits(key, cmp.Or(s.StallTimeout, c.Image.StallTimeout), cmp.Or(s.MinRate, c.Image.MinRate))
	}
	if dir := c.Image.VerifierDir; dir != "" && !filepath.IsAbs(dir) {
		found.bad("image.verifier_dir", "%q must be an absolute path", dir)
	}
	if t := c.Image.VerifierTimeout; t < 1 || t > 600 {
		found.bad("image.verifier_timeout", "%d is not between 1 and 600 seconds", t)
	}
	for _, name := range c.Image.Pinned {
		if _, err := path.Match(name, ""); err != nil {
			found.bad("image.pinned", "%q is not a pattern: %v", name, err)
		}
	}
}

// limits checks the limits of one source of images, or of all.
func (p *problems) limits(key string, stallTimeout int, minRate int64) {
	if stallTimeout < 1 || stallTimeout > 3600 {
		p.bad(key+".stall_timeout", "%d is not between 1 and 3600 seconds", stallTimeout)
	}
	if minRate < 1 {
		p.bad(key+".min_rate", "%d is not a number of bytes per second (1 turns it off)", minRate)
	}
}

func (c *Config) checkNetwork(found *problems) {
	found.oneOf("network.use", c.Network.Use, "auto", "cni", "builtin")
	if c.Network.MTU != 0 && (c.Network.MTU < 1280 || c.Network.MTU > 65535) {
		found.bad("network.mtu", "%d is not between 1280 and 65535 (0: the uplink's)", c.Network.MTU)
	}
	if n := len(c.Network.Bridge); n == 0 || n > 15 || strings.ContainsAny(c.Network.Bridge, "/ \t:") {
		found.bad("network.bridge", "%q is not an interface name of 1 to 15 characters", c.Network.Bridge)
	}
	if _, err := c.Network.Prefixes(); err != nil {
		*found = append(*found, err)
	}
}

func (c *Config) checkPod(found *problems) {
	if c.Pod.ShmSize < 4096 {
		found.bad("pod.shm_size", "%d is less than a page", c.Pod.ShmSize)
	}
	if c.Pod.PidsLimit < 0 {
		found.bad("pod.pids_limit", "%d is negative (0: no limit)", c.Pod.PidsLimit)
	}
	if c.Pod.MaxExecs < 1 || c.Pod.MaxExecs > 100000 {
		found.bad("pod.max_execs", "%d is not between 1 and 100000", c.Pod.MaxExecs)
	}
	if c.Pod.LogMaxSize != 0 && c.Pod.LogMaxSize < 1<<20 {
		found.bad("pod.log_max_size", "%d is less than 1 MiB (0: no limit)", c.Pod.LogMaxSize)
	}
	if c.Pod.LogMaxFiles < 0 || c.Pod.LogMaxFiles > 1000 {
		found.bad("pod.log_max_files", "%d is not between 0 and 1000", c.Pod.LogMaxFiles)
	}
	if c.Pod.LogRate != 0 && c.Pod.LogRate < 64<<10 {
		found.bad("pod.log_rate", "%d is less than 64 KiB a second (0: no limit)", c.Pod.LogRate)
	}
	if c.Pod.WritableLayerBytes != 0 && c.Pod.WritableLayerBytes < 64<<10 {
		found.bad("pod.writable_layer_bytes", "%d is less than 64 KiB (0: no limit)", c.Pod.WritableLayerBytes)
	}
	if c.Pod.WritableLayerInodes != 0 && c.Pod.WritableLayerInodes < 16 {
		found.bad("pod.writable_layer_inodes", "%d is less than 16 (0: no limit)", c.Pod.WritableLayerInodes)
	}
	if c.Pod.BlockIOConfig != "" && !filepath.IsAbs(c.Pod.BlockIOConfig) {
		found.bad("pod.blockio_config", "%q must be an absolute path", c.Pod.BlockIOConfig)
	}
	for _, dir := range c.Pod.CDIDirs {
		if !filepath.IsAbs(dir) {
			found.bad("pod.cdi_dirs", "%q must be an absolute path", dir)
		}
	}
}

func (c *Config) checkStream(found *problems) {
	if _, err := netip.ParseAddr(c.Stream.Address); err != nil {
		found.bad("stream.address", "%q is not an IP address", c.Stream.Address)
	}
	if c.Stream.Port < 0 || c.Stream.Port > 65535 {
		found.bad("stream.port", "%d is not between 0 and 65535 (0: any free port)", c.Stream.Port)
	}
	if c.Stream.MaxStreams < 1 || c.Stream.MaxStreams > 100000 {
		found.bad("stream.max_streams", "%d is not between 1 and 100000", c.Stream.MaxStreams)
	}
	if c.Stream.Drain < 0 || c.Stream.Drain > 30*24*3600 {
		found.bad("stream.drain", "%d is not between 0 and 2592000 seconds (0: streams end with kurid)", c.Stream.Drain)
	}
	if (c.Stream.TLSCert == "") != (c.Stream.TLSKey == "") {
		found.bad("stream.tls_cert", "tls_cert and tls_key go together")
	}
	if c.Stream.TLSClientCA != "" && c.Stream.TLSCert == "" {
		found.bad("stream.tls_client_ca", "it needs tls_cert and tls_key")
	}
	for key, path := range map[string]string{"tls_cert": c.Stream.TLSCert, "tls_key": c.Stream.TLSKey,
		"tls_client_ca": c.Stream.TLSClientCA} {
		if path != "" && !filepath.IsAbs(path) {
			found.bad("stream."+key, "%q must be an absolute path", path)
		}
	}
}

// handlerName matches a handler name in a RuntimeClass, of any length: a DNS label (RFC 1123), as required by the
// Kubernetes API.
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

// checkHandlers validates the runtime handlers.
func (c *Config) checkHandlers(found *problems) {
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		key := "handler." + name
		if len(name) > 63 || !handlerName.MatchString(name) {
			found.bad(key, "%q is not the name of a runtime handler: at most 63 lower-case letters, digits and -, at "+
				"both ends a letter or a digit", name)
		}
		if dir := c.Handlers[name].CNIConfDir; dir != "" && !filepath.IsAbs(dir) {
			found.bad(key+".cni_conf_dir", "%q must be an absolute path", dir)
		}
		if want := c.Handlers[name].Platform; want != "" {
			if p, err := platforms.Parse(want); err != nil || p.OS != "linux" {
				found.bad(key+".platform", "%q is not a platform of Linux, as linux/arm64 or linux/arm/v7", want)
			}
		}
	}
}
