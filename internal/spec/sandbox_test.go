package spec

//lint:file-ignore SA1019 the string fields for profiles, deprecated, are all that kubelets before 1.24 send

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

type sandboxRefusal struct {
	field  string
	kind   fault.Kind
	change func(*runtime.PodSandboxConfig)
}

func sandboxRefusals() []sandboxRefusal {
	type pod = runtime.PodSandboxConfig
	security := func(sc *runtime.LinuxSandboxSecurityContext) func(*pod) {
		return func(p *pod) { p.Linux.SecurityContext = sc }
	}
	options := func(o *runtime.NamespaceOption) func(*pod) {
		return security(&runtime.LinuxSandboxSecurityContext{NamespaceOptions: o})
	}
	sysctl := func(name, value string) func(*pod) {
		return func(p *pod) { p.Linux.Sysctls = map[string]string{name: value} }
	}
	dns := func(d *runtime.DNSConfig) func(*pod) { return func(p *pod) { p.DnsConfig = d } }
	userns := func(u *runtime.UserNamespace) func(*pod) {
		return options(&runtime.NamespaceOption{UsernsOptions: u})
	}
	one := []*runtime.IDMapping{{ContainerId: 0, HostId: 1000, Length: 1}}
	return []sandboxRefusal{
		{"metadata.name", fault.Invalid, func(p *pod) { p.Metadata.Name = "" }},
		{"metadata.name", fault.Invalid, func(p *pod) { p.Metadata = nil }},
		{"hostname", fault.Invalid, func(p *pod) { p.Hostname = strings.Repeat("a", 65) }},
		{"hostname", fault.Invalid, func(p *pod) { p.Hostname = "a\nb" }},
		{"hostname", fault.Invalid, func(p *pod) { p.Hostname = "a\x00" }},
		{"log_directory", fault.Invalid, func(p *pod) { p.LogDirectory = "logs" }},
		{"log_directory", fault.Invalid, func(p *pod) { p.LogDirectory = "/logs\x00" }},
		{"dns_config.servers", fault.Invalid, dns(&runtime.DNSConfig{Servers: []string{"1.1.1.1\nsearch evil"}})},
		{"dns_config.servers", fault.Invalid, dns(&runtime.DNSConfig{Servers: slices.Repeat([]string{"::1"}, 17)})},
		{"dns_config.searches", fault.Invalid, dns(&runtime.DNSConfig{Searches: []string{"a b"}})},
		{"dns_config.searches", fault.Invalid, dns(&runtime.DNSConfig{Searches: slices.Repeat([]string{"a"}, 33)})},
		{"dns_config.searches", fault.Invalid, dns(&runtime.DNSConfig{Searches: []string{strings.Repeat("a", 2049)}})},
		{"dns_config.options", fault.Invalid, dns(&runtime.DNSConfig{Options: []string{""}})},
		{"dns_config.options", fault.Invalid, dns(&runtime.DNSConfig{Options: slices.Repeat([]string{"a"}, 65)})},
		{"sysctls[kernel.panic]", fault.Invalid, sysctl("kernel.panic", "1")},
		{"sysctls[net.ipv4.../../kernel/panic]", fault.Invalid, sysctl("net.ipv4.../../kernel/panic", "1")},
		{"sysctls[net/../kernel/panic]", fault.Invalid, sysctl("net/../kernel/panic", "1")},
		{"sysctls[]", fault.Invalid, sysctl("", "1")},
		{"sysctls[net.ipv4.ip_forward]", fault.Invalid, sysctl("net.ipv4.ip_forward", "1\n2")},
		{"sysctls[net.ipv4.ip_forward]", fault.Invalid, func(p *pod) {
			options(&runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE})(p)
			sysctl("net.ipv4.ip_forward", "1")(p)
		}},
		{"sysctls[kernel.domainname]", fault.Invalid, func(p *pod) {
			options(&runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE})(p)
			sysctl("kernel.domainname", "a")(p)
		}},
		{"sysctls[net.ipv4.ip_forward]", fault.Invalid, sysctl("net.ipv4.ip_forward", "")},
		{"sysctls[kernel.hostname]", fault.Invalid, sysctl("kernel.hostname", "a")},
		{"sysctls[net/ipv4/ip_forward]", fault.Invalid, func(p *pod) {
			p.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "0"}
		}},
		{"sysctls[kernel.shmmax]", fault.Invalid, func(p *pod) {
			options(&runtime.NamespaceOption{Ipc: runtime.NamespaceMode_NODE})(p)
			sysctl("kernel.shmmax", "1")(p)
		}},
		{"namespace_options.pid", fault.Invalid, options(&runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET})},
		{"namespace_options.network", fault.Invalid, options(&runtime.NamespaceOption{Network: 9})},
		{"namespace_options.target_id", fault.Invalid, options(&runtime.NamespaceOption{TargetId: "x"})},
		{"userns_options.uids", fault.Invalid, userns(&runtime.UserNamespace{Gids: one})},
		{"userns_options.gids", fault.Invalid,
			userns(&runtime.UserNamespace{Uids: one, Gids: []*runtime.IDMapping{one[0], one[0]}})},
		{"userns_options.uids", fault.Invalid,
			userns(&runtime.UserNamespace{Uids: []*runtime.IDMapping{{ContainerId: 1, Length: 1}}, Gids: one})},
		{"userns_options.gids", fault.Invalid,
			userns(&runtime.UserNamespace{Uids: one, Gids: []*runtime.IDMapping{{HostId: 1}}})},
		{"userns_options.uids", fault.Invalid,
			userns(&runtime.UserNamespace{Uids: []*runtime.IDMapping{{HostId: 1<<32 - 1, Length: 1}}, Gids: one})},
		{"userns_options", fault.Invalid, userns(&runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE, Uids: one})},
		{"namespace_options.pid", fault.Invalid, options(&runtime.NamespaceOption{
			Pid: runtime.NamespaceMode_NODE, UsernsOptions: &runtime.UserNamespace{Uids: one, Gids: one},
		})},
		{"namespace_options.ipc", fault.Invalid, options(&runtime.NamespaceOption{
			Ipc: runtime.NamespaceMode_NODE, UsernsOptions: &runtime.UserNamespace{Uids: one, Gids: one},
		})},
		{"userns_options", fault.Invalid, userns(&runtime.UserNamespace{Mode: runtime.NamespaceMode_CONTAINER})},
		{"run_as_group", fault.Invalid,
			security(&runtime.LinuxSandboxSecurityContext{RunAsGroup: &runtime.Int64Value{}})},
		{"supplemental_groups_policy", fault.Invalid,
			security(&runtime.LinuxSandboxSecurityContext{SupplementalGroupsPolicy: 9})},
		{"seccomp", fault.Invalid, security(&runtime.LinuxSandboxSecurityContext{SeccompProfilePath: "x"})},
		{"apparmor", fault.Unimplemented, security(&runtime.LinuxSandboxSecurityContext{
			Apparmor: &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "p"},
		})},
	}
}

func goodSandbox() *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "u1"},
		Hostname: "Web-1.example", LogDirectory: "/var/log/pods/x",
		DnsConfig: &runtime.DNSConfig{Servers: []string{"10.0.0.10", "fe80::1%eth0"}, Searches: []string{"a.svc", "."},
			Options: []string{"ndots:5"}},
		Linux: &runtime.LinuxPodSandboxConfig{
			Sysctls: map[string]string{
				"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100", "net.ipv4.conf.eth0/1.forwarding": "1",
				"net/ipv4/conf/eth0.1/forwarding": "1", "kernel.sem": "1 2 3 4",
				"kernel.domainname": "lab.test",
			},
			SecurityContext: &runtime.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtime.NamespaceOption{
					Pid:           runtime.NamespaceMode_CONTAINER,
					UsernsOptions: &runtime.UserNamespace{Mode: runtime.NamespaceMode_NODE},
				},
				Seccomp:  &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/p"},
				Apparmor: &runtime.SecurityProfile{},
			},
		},
	}
}

func TestCheckSandbox(t *testing.T) {
	node := testNode(t, "v1")
	if err := CheckSandbox(goodSandbox(), node); err != nil {
		t.Fatal(err)
	}
	alone := goodSandbox()
	alone.Metadata = &runtime.PodSandboxMetadata{Name: "web"}
	if err := CheckSandbox(alone, node); err != nil {
		t.Errorf("a name alone: %v", err)
	}
	for i, r := range sandboxRefusals() {
		cfg := goodSandbox()
		r.change(cfg)
		err := CheckSandbox(cfg, node)
		if err == nil || fault.Of(err) != r.kind || !strings.Contains(err.Error(), r.field) {
			t.Errorf("%d: %s: %v (kind %q), want kind %q", i, r.field, err, fault.Of(err), r.kind)
		}
	}
}

// A pod can have any host name that the kernel accepts, valid in DNS or not.
func TestHostnamesThatTheKernelTakes(t *testing.T) {
	for _, name := range []string{
		"", "a", "web-0.sub.ns.svc.", "a_b", "-a", "a..b", ".", "ünïcode", "a b", strings.Repeat("a", 64),
		strings.Repeat("a.", 32),
	} {
		cfg := goodSandbox()
		cfg.Hostname = name
		if err := CheckSandbox(cfg, testNode(t, "v1")); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// A setting without meaning on this node is noted, and the pod runs without it.
func TestSandboxNotes(t *testing.T) {
	cfg := goodSandbox()
	if notes := SandboxNotes(cfg, testNode(t, "v1")); len(notes) > 0 {
		t.Errorf("nothing to note: %q", notes)
	}
	cfg.Windows = &runtime.WindowsPodSandboxConfig{}
	cfg.Linux.SecurityContext.SelinuxOptions = &runtime.SELinuxOption{Level: "whatever, it is"}
	cfg.DnsConfig = &runtime.DNSConfig{Servers: []string{"10.0.0.10", "010.0.0.10"}}
	for node, want := range map[string][]string{"v1": {"windows", "dns_config.servers: \"010.0.0.10\"",
		"selinux_options"}, "selinux": {"windows", "dns_config"}} {
		notes := SandboxNotes(cfg, testNode(t, node))
		if len(notes) != len(want) {
			t.Errorf("%s: %q", node, notes)
			continue
		}
		for i := range want {
			if !strings.HasPrefix(notes[i], want[i]) {
				t.Errorf("%s: %q", node, notes)
			}
		}
	}
	if err := CheckSandbox(cfg, testNode(t, "v1")); err != nil {
		t.Error(err)
	}
	if err := CheckSandbox(cfg, testNode(t, "selinux")); fault.Of(err) != fault.Invalid {
		t.Errorf("with SELinux: %v", err)
	}
}

// Two spellings of one sysctl are the same, with one value.
func TestSysctls(t *testing.T) {
	cfg := goodSandbox()
	cfg.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1", "net/ipv4/ip_forward": "1",
		"net.ipv4.conf.eth0/1.forwarding": "0"}
	got, err := Sysctls(cfg)
	if err != nil || len(got) != 2 || got["net/ipv4/ip_forward"] != "1" ||
		got["net/ipv4/conf/eth0.1/forwarding"] != "0" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestResolvConf(t *testing.T) {
	host := []byte("nameserver 9.9.9.9\n")
	for _, c := range []struct {
		cfg  *runtime.DNSConfig
		want string
	}{
		{nil, "nameserver 9.9.9.9\n"},
		{&runtime.DNSConfig{}, "nameserver 9.9.9.9\n"},
		{&runtime.DNSConfig{Options: []string{"ndots:5", "edns0"}}, "options ndots:5 edns0\n"},
		{
			&runtime.DNSConfig{Servers: []string{"10.0.0.10", "::1"}, Searches: []string{"a.svc", "b"},
				Options: []string{"ndots:5"}},
			"search a.svc b\nnameserver 10.0.0.10\nnameserver ::1\noptions ndots:5\n",
		},
		{&runtime.DNSConfig{Servers: []string{"fe80::53%eth0"}}, "nameserver fe80::53%eth0\n"},
		{&runtime.DNSConfig{Servers: []string{"010.0.0.10", "192.0.2.1:53"}},
			"nameserver 010.0.0.10\nnameserver 192.0.2.1:53\n"},
		{&runtime.DNSConfig{Searches: []string{"a.svc"}}, "search a.svc\n"},
		// 32 domains, 2047 characters
		{&runtime.DNSConfig{Searches: searches(32, 63)}, "search " + strings.Join(searches(32, 63), " ") + "\n"},
	} {
		got, err := ResolvConf(c.cfg, host)
		if err != nil || string(got) != c.want {
			t.Errorf("%v: %q, %v", c.cfg, got, err)
		}
	}
	full := append(searches(31, 63), strings.Repeat("z", 64)) // 2048 characters, the limit of Kubernetes
	if got, err := ResolvConf(&runtime.DNSConfig{Searches: full}, host); err != nil ||
		len(got) != len("search \n")+2048 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for name, cfg := range map[string]*runtime.DNSConfig{
		"an empty server":        {Servers: []string{""}},
		"a line in a server":     {Servers: []string{"192.0.2.1\nnameserver 192.0.2.2"}},
		"a line in a zone":       {Servers: []string{"fe80::1%eth0\nsearch evil"}},
		"a space in a zone":      {Servers: []string{"fe80::1%eth0 evil"}},
		"too many domains":       {Searches: searches(33, 5)},
		"too many characters":    {Searches: append(full[:31:31], strings.Repeat("z", 65))},
		"a line in a domain":     {Searches: []string{"a\nnameserver 192.0.2.2"}},
		"two domains in one":     {Searches: []string{"a b"}},
		"an empty domain":        {Searches: []string{""}},
		"a comment for a domain": {Searches: []string{"#a"}},
		"a line in an option":    {Options: []string{"ndots:1\nsearch a"}},
		"an empty option":        {Options: []string{""}},
		"a long option":          {Options: []string{strings.Repeat("o", 256)}},
	} {
		if got, err := ResolvConf(cfg, host); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// searches returns count different domains of a given length.
func searches(count, length int) (all []string) {
	for i := range count {
		all = append(all, fmt.Sprintf("%0*d", length, i))
	}
	return all
}

func TestLogPath(t *testing.T) {
	for _, c := range []struct {
		dir, name, want string
		bad             bool
	}{
		{"/logs", "a/0.log", "/logs/a/0.log", false},
		{"", "a.log", "", false},
		{"/logs", "", "", false},
		{"/logs", "/etc/passwd", "", true},
		{"/logs", "a/../../b", "", true},
		{"/logs", "a/..", "", true},
		{"/logs", "a\x00b", "", true},
	} {
		got, err := LogPath(&runtime.PodSandboxConfig{LogDirectory: c.dir}, &runtime.ContainerConfig{LogPath: c.name})
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%q, %q: %q, %v", c.dir, c.name, got, err)
		}
	}
}

func TestStopSignal(t *testing.T) {
	for _, c := range []struct {
		asked  runtime.Signal
		image  string
		number int
		name   runtime.Signal
	}{
		{0, "", 15, runtime.Signal_SIGNAL_SIGTERM},
		{0, "SIGQUIT", 3, runtime.Signal_SIGNAL_SIGQUIT},
		{0, "quit", 3, runtime.Signal_SIGNAL_SIGQUIT},
		{0, "9", 9, runtime.Signal_SIGNAL_SIGKILL},
		{0, "RTMIN+3", 37, runtime.Signal_SIGNAL_SIGRTMINPLUS3},
		{0, "SIGRTMAX-1", 63, runtime.Signal_SIGNAL_SIGRTMAXMINUS1},
		{0, "64", 64, runtime.Signal_SIGNAL_SIGRTMAX},
		{runtime.Signal_SIGNAL_SIGUSR1, "SIGQUIT", 10, runtime.Signal_SIGNAL_SIGUSR1},
		{runtime.Signal_SIGNAL_SIGRTMIN, "", 34, runtime.Signal_SIGNAL_SIGRTMIN},
	} {
		n, name, err := StopSignal(&runtime.ContainerConfig{StopSignal: c.asked},
			imagespec.ImageConfig{StopSignal: c.image})
		if err != nil || int(n) != c.number || name != c.name {
			t.Errorf("%s, image %q: %d, %s, %v", c.asked, c.image, n, name, err)
		}
	}
	for _, bad := range []string{"", "0", "65", "-1", "SIGNOT", "RTMIN+31", "RTMIN+x", "RTMAX--1"} {
		if n, name, err := StopSignal(nil, imagespec.ImageConfig{StopSignal: bad}); err != nil || n != 15 ||
			name != runtime.Signal_SIGNAL_SIGTERM {
			t.Errorf("image %q: %d, %s, %v", bad, n, name, err)
		}
	}
	// Every signal of the CRI has a number on this machine.
	for s, name := range runtime.Signal_name {
		n, _, err := StopSignal(&runtime.ContainerConfig{StopSignal: runtime.Signal(s)}, imagespec.ImageConfig{})
		if err != nil || n < 1 || n > 64 {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
}

func TestSeccompFile(t *testing.T) {
	for _, c := range []struct {
		sc   *runtime.LinuxContainerSecurityContext
		want string
	}{
		{nil, ""},
		{&runtime.LinuxContainerSecurityContext{Seccomp: &runtime.SecurityProfile{}}, ""},
		{&runtime.LinuxContainerSecurityContext{SeccompProfilePath: "localhost//a/b"}, "/a/b"},
		{&runtime.LinuxContainerSecurityContext{SeccompProfilePath: "localhost//a/b", Privileged: true}, ""},
		{&runtime.LinuxContainerSecurityContext{
			Seccomp: &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost,
				LocalhostRef: "localhost//d"},
		}, "/d"},
		{&runtime.LinuxContainerSecurityContext{
			Seccomp: &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost,
				LocalhostRef: "/c"},
			SeccompProfilePath: "localhost//a/b",
		}, "/c"},
	} {
		got, err := SeccompFile(&runtime.ContainerConfig{Linux: &runtime.LinuxContainerConfig{SecurityContext: c.sc}})
		if err != nil || got != c.want {
			t.Errorf("%v: %q, %v", c.sc, got, err)
		}
	}
}
