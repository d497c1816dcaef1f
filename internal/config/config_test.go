package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestDefaultIsValid(t *testing.T) {
	c := Default()
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestReadOverridesOnlyTheGivenKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	body := "log_level = 'debug'\n[network]\nsubnets = ['10.9.0.0/16', 'fd00:9::/64']\n"
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Read(path)
	if err != nil || c.Check() != nil {
		t.Fatal(err, c.Check())
	}
	if c.LogLevel != "debug" || len(c.Network.Subnets) != 2 || c.Network.Bridge != "kuri0" ||
		c.Root != "/var/lib/kuri" {
		t.Fatalf("%+v", c)
	}
	if _, err := Read(path + ".absent"); !errors.Is(err, fault.NotFound) {
		t.Fatalf("absent file: %v", err)
	}
}

func TestMapHasTheKeysOfTheFile(t *testing.T) {
	m, err := Default().Map()
	if err != nil || m["log_level"] != "info" || m["network"].(map[string]any)["bridge"] != "kuri0" {
		t.Fatalf("%v, %v", m, err)
	}
}

func TestContainerRoot(t *testing.T) {
	for _, dir := range []string{"/data/kuri/", "/var/lib/kuri/writable", "/var/lib/kuri/layers2", "/var/lib"} {
		c := Default()
		if c.WritableRoot() != c.Root {
			t.Errorf("without a container_root, writable layers are below %s", c.WritableRoot())
		}
		c.ContainerRoot = dir
		if err := c.Check(); err != nil || c.WritableRoot() != filepath.Clean(dir) {
			t.Errorf("%s: %v, %s", dir, err, c.WritableRoot())
		}
	}
}

func TestHandlers(t *testing.T) {
	c := Default()
	if err := c.parse("config.toml",
		[]byte("[handler.blue]\ncni_conf_dir = '/etc/cni/blue.d'\n[handler.0]\n")); err != nil || c.Check() != nil {
		t.Fatal(err, c.Check())
	}
	if len(c.Handlers) != 2 || c.Handlers["blue"].CNIConfDir != "/etc/cni/blue.d" {
		t.Fatalf("%+v", c.Handlers)
	}
}

func TestSources(t *testing.T) {
	c := Default()
	body := "[image.source.'m.example:5000']\nmin_rate = 1048576\n[image.source.'docker.io']\nstall_timeout = " +
		"5\n[image.source.'[::1]:5000']\n"
	if err := c.parse("config.toml", []byte(body)); err != nil || c.Check() != nil {
		t.Fatal(err, c.Check())
	}
	if c.Image.Sources["m.example:5000"].MinRate != 1<<20 || c.Image.Sources["docker.io"].StallTimeout != 5 ||
		len(c.Image.Sources) != 3 {
		t.Fatalf("%+v", c.Image.Sources)
	}
}

func TestSlowMethods(t *testing.T) {
	c := Default()
	if err := c.parse("config.toml", []byte("[log_slow]\nPullImage = 60\nRunPodSandbox = 0.5\n")); err != nil ||
		c.Check() != nil {
		t.Fatal(err, c.Check())
	}
	if c.LogSlow["PullImage"] != 60 || c.LogSlow["RunPodSandbox"] != 0.5 || c.LogSlow["StartContainer"] != 5 {
		t.Errorf("%v", c.LogSlow)
	}
}

func TestErrorsNameTheKey(t *testing.T) {
	for _, tc := range []struct{ body, want string }{
		{"colour = 'brown'", "unknown key colour (line 1)"},
		{"[network]\nmtuu = 1", "unknown key network.mtuu (line 2)"},
		{"log_level = 3", `key "log_level"`},
		{"trace_endpoint = '127.0.0.1:4317'", `trace_endpoint: "127.0.0.1:4317" is not a URL`},
		{"[log_slow]\nrunpod = 1", `log_slow: "runpod" is not one of ContainerStatus, CreateContainer`},
		{"[log_slow]\nPullImage = -1", "log_slow.PullImage: -1 is not a number of seconds"},
		{"listen = 'kuri.sock'", `listen: "kuri.sock" must be an absolute path`},
		{"root = '/'", "root:"},
		{"state = '/var/lib/kuri'", "state:"},
		{"listen = '/" + strings.Repeat("x", 120) + "'", "107 bytes"},
		{"container_root = 'layers'", `container_root: "layers" must be an absolute path`},
		{"container_root = '/var/lib/kuri/'", "container_root: \"/var/lib/kuri\" is also root"},
		{"container_root = '/run/kuri/x'", "container_root:"},
		{"container_root = '/var/lib/kuri/layers'", "container_root:"},
		{"container_root = '/var/lib/kuri/images/x'", "container_root:"},
		{"container_root = '/var/lib/kuri/pods/x'", "container_root:"},
		{"container_root = '/data'\nroot = '/data/containers/kuri'", "lies among the writable layers"},
		{"log_level = 'loud'", "log_level:"},
		{"cgroup_driver = 'v2'", "cgroup_driver:"},
		{"scope_prefix = ''", "scope_prefix:"},
		{"scope_prefix = 'a:b'", "scope_prefix:"},
		{"scope_prefix = 'kuri-'", "scope_prefix:"},
		{"scope_prefix = '../x'", "scope_prefix:"},
		{"[network]\nuse = 'calico'", "network.use:"},
		{"[network]\nmtu = 12", "network.mtu:"},
		{"[network]\nsubnets = ['10.0.0.0/8', '10.9.0.0/16']", "network.subnets:"},
		{"[network]\nsubnets = ['10.0.0.0']", "network.subnets:"},
		{"[image]\nstall_timeout = 0", "image.stall_timeout:"},
		{"[image]\nmin_rate = 0", "image.min_rate:"},
		{"[image]\npinned = ['a[']", "image.pinned:"},
		{"[image]\nverifier_dir = 'bin'", "image.verifier_dir:"},
		{"[image]\nverifier_timeout = 0", "image.verifier_timeout:"},
		{"[image.source.'m.example']\nstall_timeout = -1", `image.source."m.example".stall_timeout:`},
		{"[image.source.'m.example']\nstall_timeout = 3601", `image.source."m.example".stall_timeout:`},
		{"[image.source.'m.example']\nmin_rate = -1", `image.source."m.example".min_rate:`},
		{"[image.source.'https://m.example']\nmin_rate = 1", "is not a host"},
		{"[image.source.'m.example/v2']\nmin_rate = 1", "is not a host"},
		{"[image.source.'']\nmin_rate = 1", "is not a host"},
		{"[image.source.m]\nrate = 1", "unknown key image.source.m.rate (line 2)"},
		{"[pod]\nshm_size = 0", "pod.shm_size:"},
		{"[pod]\nmax_execs = 0", "pod.max_execs:"},
		{"[pod]\nblockio_config = 'here'", "pod.blockio_config:"},
		{"[pod]\nwritable_layer_bytes = 4096", "pod.writable_layer_bytes:"},
		{"[pod]\nwritable_layer_inodes = -1", "pod.writable_layer_inodes:"},
		{"[stream]\naddress = 'localhost'", "stream.address:"},
		{"[stream]\nport = 65536", "stream.port:"},
		{"[stream]\ndrain = -1", "stream.drain:"},
		{"[stream]\nmax_streams = 0", "stream.max_streams:"},
		{"[stream]\ntls_cert = '/c'", "stream.tls_cert:"},
		{"[stream]\ntls_client_ca = '/c'", "stream.tls_client_ca:"},
		{"[stream]\ntls_cert = 'c'\ntls_key = '/k'", "stream.tls_cert:"},
		{"[handler.Kata]", "handler.Kata:"},
		{"[handler.'']", "handler.:"},
		{"[handler.a-]", "handler.a-:"},
		{"[handler." + strings.Repeat("x", 64) + "]", "63"},
		{"[handler.blue]\ncni_conf_dir = 'net.d'", "handler.blue.cni_conf_dir:"},
		{"[handler.blue]\nplatform = 'windows/amd64'", "handler.blue.platform:"},
		{"[handler.blue]\nplatform = 'a/b/c/d'", "handler.blue.platform:"},
		{"[handler.blue]\nruntime = 'runc'", "unknown key handler.blue.runtime (line 2)"},
		{"[[[", "line 1"},
	} {
		c := Default()
		err := c.parse("config.toml", []byte(tc.body))
		if err == nil {
			err = c.Check()
		}
		if !errors.Is(err, fault.Invalid) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %q", tc.body, err, tc.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("listen = '/run/x'\n[network]\nsubnets = ['10.0.0.0/8']"))
	f.Fuzz(func(t *testing.T, body []byte) {
		c := Default()
		if c.parse("fuzz", body) == nil {
			c.Check()
		}
	})
}
