package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/network/netns"
	"github.com/kuri-cri/kuri/internal/network/networktest"
)

// newCNI is a CNI network with empty directories.
func newCNI(t *testing.T) (c *Network, conf, bin string) {
	t.Helper()
	return newCNIWithin(t, 30*time.Second)
}

// newCNIWithin is newCNI with what a plugin may take: a second where the test has one that hangs,
// and no less than a busy machine needs to start a shell where it does not.
func newCNIWithin(t *testing.T, limit time.Duration) (c *Network, conf, bin string) {
	t.Helper()
	conf, bin = t.TempDir(), t.TempDir()
	c, err := New(Config{ConfDir: conf, BinDirs: []string{bin}, CacheDir: t.TempDir(), Timeout: limit})
	networktest.Must(t, err)
	return c, conf, bin
}

// hung is what an error says of a plugin that does not end.
const hung = "did not end within 1s"

// limitOf is what a plugin may take in a test whose error says that.
func limitOf(says string) time.Duration {
	if says == hung {
		return time.Second
	}
	return 30 * time.Second
}

// TestPlugins: what plugins do wrong becomes an error that says it, soon, and DEL follows a failed ADD.
func TestPlugins(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		says   []string
	}{
		"fails with a reason": {`[ $CNI_COMMAND = DEL ] && exit 0; echo '{"cniVersion":"1.0.0","code":7,"msg":"no more wires","details":"none at all"}'; exit 1`, []string{"no more wires", "none at all"}},
		"fails on stderr": {`[ $CNI_COMMAND = DEL ] && exit 0; echo 'out of wires' >&2; exit 3`,
			[]string{"out of wires", "exit status 3"}},
		"fails in silence": {`[ $CNI_COMMAND = DEL ] && exit 0; exit 4`, []string{"exit status 4"}},
		"prints rubbish":   {`echo hello`, []string{"invalid character"}},
		"prints nothing":   {``, []string{"n"}},
		"prints too much": {`[ $CNI_COMMAND = DEL ] && exit 0; exec head -c 100000000 /dev/zero`,
			[]string{"more than"}},
		"hangs":                    {`[ $CNI_COMMAND = DEL ] && exit 0; sleep 100`, []string{hung}},
		"hangs with a child":       {`[ $CNI_COMMAND = DEL ] && exit 0; sleep 100 & sleep 100`, []string{hung}},
		"gives no address":         {`echo '{"cniVersion":"1.0.0"}'`, []string{"no address"}},
		"gives another's address":  {`echo '{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.7.0.2/24","interface":0}]}'`, []string{"no address"}},
		"answers in a bad version": {`echo '{"cniVersion":"99.0.0","ips":[{"address":"10.7.0.2/24"}]}'`, []string{"version"}},
	} {
		t.Run(name, func(t *testing.T) {
			networktest.RequireRoot(t)
			cni, conf, bin := newCNIWithin(t, limitOf(c.says[0]))
			log := networktest.Plugin(t, bin, "own", c.script)
			networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.0.0","name":"wires","plugins":[{"type":"own"}]}`)
			pod, _ := networktest.NewPod(t)
			began := time.Now()
			_, err := cni.Attach(t.Context(), pod)
			networktest.Wants(t, err, fault.Unavailable, append(c.says, "network wires", "default/web")...)
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("it took %s", took)
			}
			if got := log(); got != "ADD\nDEL" {
				t.Errorf("the plugin was called for %q", got)
			}
			if _, err := os.Stat(cni.path(pod.ID)); err == nil {
				t.Error("a record is left")
			}
		})
	}
}

// TestChildKeepsThePipe: a plugin that leaves a daemon behind, with the plugin's output open, does not hold up the pod.
func TestChildKeepsThePipe(t *testing.T) {
	networktest.RequireRoot(t)
	cni, conf, bin := newCNI(t)
	pids := filepath.Join(t.TempDir(), "pids")
	networktest.Plugin(t, bin, "own", `[ $CNI_COMMAND = DEL ] && exit 0; sleep 100 & echo $! >>`+pids+`; echo '`+
		networktest.Answer+`'`)
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.0.0","name":"wires","plugins":[{"type":"own"}]}`)
	pod, _ := networktest.NewPod(t)
	began := time.Now()
	r := networktest.Attach(t, cni, pod)
	if took := time.Since(began); took > 20*time.Second || r.IPs[0].String() != "10.7.0.2" ||
		r.MAC != "0a:00:00:00:00:01" {
		t.Errorf("%s, %+v", took, *r)
	}
	networktest.Must(t, cni.Detach(t.Context(), pod, r))
	var pid int
	body, err := os.ReadFile(pids)
	networktest.Must(t, err)
	_, err = fmt.Sscan(string(body), &pid)
	networktest.Must(t, err)
	networktest.Must(t, syscall.Kill(pid, syscall.SIGKILL))
}

// TestWhatPluginsAreTold: arguments, and those capabilities that they declare.
func TestWhatPluginsAreTold(t *testing.T) {
	networktest.RequireRoot(t)
	cni, conf, bin := newCNI(t)
	log := networktest.Plugin(t, bin, "first",
		`echo "$CNI_ARGS" "$CNI_IFNAME" "$CNI_CONTAINERID" >>$log; cat >>$log; echo >>$log; echo '`+networktest.Answer+`'`)
	second := networktest.Plugin(t, bin, "second", `cat >>$log; echo '`+networktest.Answer+`'`)
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.0.0","name":"wires","plugins":[
		{"type":"first","capabilities":{"dns":true,"portMappings":true,"cgroupPath":true}},{"type":"second"}]}`)
	pod, _ := networktest.NewPod(t)
	pod.PortMappings = []network.PortMapping{
		{Protocol: network.TCP, ContainerPort: 81, HostPort: 8080}, {Protocol: network.TCP, ContainerPort: 80, HostPort: 8080,
			HostIP: networktest.Uplink4}, {Protocol: network.TCP, ContainerPort: 90},
	}
	pod.DNS = network.DNS{Servers: []string{"192.0.2.53"}, Searches: []string{"svc.local"}, Options: []string{"ndots:5"}}
	pod.CgroupParent = "/kubepods/pod1"
	r := networktest.Attach(t, cni, pod)
	if len(r.HostPorts) != 2 {
		t.Errorf("host ports in effect: %v", r.HostPorts)
	}
	for _, want := range []string{
		"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=" + pod.ID +
			";K8S_POD_UID=uid-1 eth0 " + pod.ID,
		// the narrower one first
		`"portMappings":[{"containerPort":80,"hostIP":"198.51.100.1","hostPort":8080,"protocol":"tcp"},{"containerPort":81,"hostPort":8080,"protocol":"tcp"}]`,
		`"dns":{"options":["ndots:5"],"searches":["svc.local"],"servers":["192.0.2.53"]}`,
		`"cgroupPath":"/kubepods/pod1"`,
	} {
		if !strings.Contains(log(), want) {
			t.Errorf("%s\ndoes not have %s", log(), want)
		}
	}
	if strings.Contains(second(), "runtimeConfig") || !strings.Contains(second(), `"prevResult"`) {
		t.Errorf("the second plugin was told %s", second())
	}
	networktest.Must(t, cni.Detach(t.Context(), pod, r))

	pod.Name = "web;K8S_POD_NAME=other"
	_, err := cni.Attach(t.Context(), pod)
	networktest.Wants(t, err, fault.Invalid, "K8S_POD_NAME")
	pod.Name = "web"
	networktest.Write(t, conf, "05.conflist", `{"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"second"}]}`)
	_, err = cni.Attach(t.Context(), pod)
	networktest.Wants(t, err, fault.Precondition, "8080/tcp", "portMappings", "plain")
}

// TestStatus: plugins of version 1.1 are asked, others are not, and an answer is kept for a while.
func TestStatus(t *testing.T) {
	networktest.RequireRoot(t)
	cni, conf, bin := newCNI(t)
	log := networktest.Plugin(t, bin, "own",
		`[ $CNI_COMMAND = STATUS ] && { echo '{"cniVersion":"1.1.0","code":50,"msg":"the switch is off"}'; exit 1; }; echo '{}'`)
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.0.0","name":"old","plugins":[{"type":"own"}]}`)
	networktest.Must(t, cni.Ready(t.Context()))
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.1.0","name":"new","plugins":[{"type":"own"}]}`)
	networktest.Wants(t, cni.Ready(t.Context()), fault.Unavailable, "the switch is off", "network new")
	networktest.Wants(t, cni.Ready(t.Context()), fault.Unavailable, "the switch is off")
	if got := log(); got != "STATUS" {
		t.Errorf("the plugin was called for %q", got)
	}
}

// TestCapabilities: bandwidth, hardware address and ranges reach the plugins that declare them, in the shape of the CNI
// conventions, and what cannot be given is refused.
func TestCapabilities(t *testing.T) {
	networktest.RequireRoot(t)
	cni, conf, bin := newCNI(t)
	log := networktest.Plugin(t, bin, "own", `cat >>$log; echo '`+networktest.Answer+`'`)
	networktest.Write(t, conf, "10.conflist",
		`{"cniVersion":"1.0.0","name":"wires","plugins":[{"type":"own","capabilities":{"bandwidth":true,"mac":true,"ipRanges":true}}]}`)
	networktest.Must(t, cni.SetPodCIDR([]netip.Prefix{netip.MustParsePrefix("fd00:5::/64"),
		netip.MustParsePrefix("10.5.0.0/24")}))
	cni, err := New(cni.config) // the kubelet tells it once
	networktest.Must(t, err)
	pod, _ := networktest.NewPod(t)
	pod.Annotations = map[string]string{network.IngressBandwidth: "10M", network.EgressBandwidth: "64k",
		network.MAC: "0A:58:0a:00:00:02"}
	r := networktest.Attach(t, cni, pod)
	for _, want := range []string{
		`"bandwidth":{"egressBurst":1048576,"egressRate":64000,"ingressBurst":10000000,"ingressRate":10000000}`,
		`"ipRanges":[[{"subnet":"10.5.0.0/24"}],[{"subnet":"fd00:5::/64"}]]`,
		`"mac":"0a:58:0a:00:00:02"`,
	} {
		if !strings.Contains(log(), want) {
			t.Errorf("%s\ndoes not have %s", log(), want)
		}
	}
	networktest.Must(t, cni.Detach(t.Context(), pod, r))
	for key, value := range map[string]string{network.IngressBandwidth: "fast", network.EgressBandwidth: "1",
		network.MAC: "01:00:5e:00:00:01", "network.kuri.dev/mac": "x"} {
		pod.Annotations = map[string]string{key: value}
		_, err := cni.Attach(t.Context(), pod)
		networktest.Wants(t, err, fault.Invalid, key, value)
	}
	networktest.Write(t, conf, "05.conflist", `{"cniVersion":"1.0.0","name":"plain","plugins":[{"type":"own"}]}`)
	// nobody limits bandwidth here, as everywhere in Kubernetes
	pod.Annotations = map[string]string{network.IngressBandwidth: "fast"}
	networktest.Must(t, cni.Detach(t.Context(), pod, networktest.Attach(t, cni, pod)))
	pod.Annotations = map[string]string{network.MAC: "0a:58:0a:00:00:02"}
	_, err = cni.Attach(t.Context(), pod)
	networktest.Wants(t, err, fault.Precondition, "plain", "capability mac")
}

// TestGC: plugins hear which pods are there, the ones whose DEL failed too; older versions hear nothing, and neither do
// those of a configuration that says so.
func TestGC(t *testing.T) {
	networktest.RequireRoot(t)
	cni, conf, bin := newCNI(t)
	log := networktest.Plugin(t, bin, "own", `case $CNI_COMMAND in ADD) echo '`+networktest.Answer+
		`';; GC) grep -o '"cni.dev/valid-attachments":[^]]*' >>$log;; DEL) exit 1; esac`)
	list := `{"cniVersion":"1.1.0","name":"wires","plugins":[{"type":"own"}]%s}`
	networktest.Must(t, cni.GC(t.Context())) // nothing is configured
	networktest.Write(t, conf, "10.conflist", fmt.Sprintf(list, ""))
	pod, _ := networktest.NewPod(t)
	networktest.Attach(t, cni, pod)
	if err := cni.Detach(t.Context(), pod, nil); err == nil {
		t.Error("detached")
	}
	networktest.Must(t, cni.GC(t.Context()))
	if got := log(); !strings.HasSuffix(got, "GC\n\"cni.dev/valid-attachments\":[{\"containerID\":\""+pod.ID+
		"\",\"ifname\":\"eth0\"}") {
		t.Errorf("the plugin was called as %s", got)
	}
	calls := log()
	networktest.Write(t, conf, "10.conflist", fmt.Sprintf(list, `,"disableGC":true`))
	networktest.Must(t, cni.GC(t.Context()))
	networktest.Write(t, conf, "10.conflist", strings.ReplaceAll(fmt.Sprintf(list, ""), "1.1.0", "1.0.0"))
	networktest.Must(t, cni.GC(t.Context()))
	if got := log(); got != calls {
		t.Errorf("the plugin was called as %s", got)
	}
	cni.gc.RLock() // as while a pod is attached
	defer cni.gc.RUnlock()
	if err := cni.GC(t.Context()); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
}

// TestCheck: CHECK gets the result of the ADD; a configuration that is too old or says so is not asked.
func TestCheck(t *testing.T) {
	networktest.RequireRoot(t)
	cni, conf, bin := newCNI(t)
	log := networktest.Plugin(t, bin, "own",
		`[ $CNI_COMMAND = CHECK ] && { grep -o '"prevResult"' >>$log; echo '{"code":11,"msg":"the wire is cut"}'; exit 1; }; echo '`+networktest.Answer+`'`)
	for body, says := range map[string]string{
		`{"cniVersion":"1.0.0","name":"wires","plugins":[{"type":"own"}]}`:                     "the wire is cut",
		`{"cniVersion":"1.0.0","name":"wires","plugins":[{"type":"own"}],"disableCheck":true}`: "",
		`{"cniVersion":"0.3.1","name":"wires","plugins":[{"type":"own"}]}`:                     "",
	} {
		networktest.Write(t, conf, "10.conflist", body)
		pod, _ := networktest.NewPod(t)
		networktest.Must(t, cni.Check(t.Context(), pod.ID))
		r := networktest.Attach(t, cni, pod)
		if err := cni.Check(t.Context(), pod.ID); says == "" {
			networktest.Must(t, err)
		} else {
			networktest.Wants(t, err, fault.Unavailable, says, "network wires")
		}
		networktest.Must(t, cni.Detach(t.Context(), pod, r))
	}
	if got := strings.Count(log(), "CHECK\n\"prevResult\""); got != 1 {
		t.Errorf("the plugin was called as %s", log())
	}
}

// TestVerbsThatFail: whatever DEL does wrong, the record stays until it has worked, and the error says what it was.
func TestVerbsThatFail(t *testing.T) {
	for name, c := range map[string]struct{ script, says string }{
		"DEL hangs":         {`sleep 100`, hung},
		"DEL fails":         {`exit 3`, "exit status 3"},
		"DEL with a reason": {`echo '{"code":100,"msg":"ask later"}'; exit 1`, "ask later"},
		"DEL says too much": {`exec head -c 100000000 /dev/zero`, "more than"},
		"DEL is killed":     {`kill -9 $$`, "killed"},
	} {
		t.Run(name, func(t *testing.T) {
			networktest.RequireRoot(t)
			cni, conf, bin := newCNIWithin(t, limitOf(c.says))
			fail := filepath.Join(t.TempDir(), "fail")
			networktest.Plugin(t, bin, "own", `[ $CNI_COMMAND = DEL ] && [ -e `+fail+` ] && { `+c.script+`; }; echo '`+
				networktest.Answer+`'`)
			networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.0.0","name":"wires","plugins":[{"type":"own"}]}`)
			pod, _ := networktest.NewPod(t)
			r := networktest.Attach(t, cni, pod)
			networktest.Must(t, os.WriteFile(fail, nil, 0o600))
			networktest.Wants(t, cni.Detach(t.Context(), pod, r), fault.Unavailable, c.says, "network wires", "default/web")
			if ids, err := cni.Attached(); err != nil || len(ids) != 1 || ids[0] != pod.ID {
				t.Errorf("attached: %v, %v", ids, err)
			}
			networktest.Must(t, os.Remove(fail))
			networktest.Must(t, cni.Detach(t.Context(), pod, r)) // rubbish after a DEL that worked is no error
		})
	}
}

// TestAnotherNamespaceAtThePath: when the pod's namespace is gone and another is mounted at its
// path, DEL gets no namespace and CHECK says so; the other one keeps what it has.
func TestAnotherNamespaceAtThePath(t *testing.T) {
	networktest.RequireRoot(t)
	bin := networktest.RealPlugins(t)
	networktest.LeftoversBut(t, append(networktest.EmptyTables, "link cnitest0")...)
	networktest.Must(t, netns.SetSysctl("ipv6/conf/default/accept_dad", "0"))
	t.Cleanup(func() { networktest.Must(t, netns.SetSysctl("ipv6/conf/default/accept_dad", "1")) })
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("cnitest0"); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	cni, err := New(Config{ConfDir: t.TempDir(), BinDirs: []string{bin, t.TempDir()}, CacheDir: t.TempDir()})
	networktest.Must(t, err)
	log := networktest.Plugin(t, cni.config.BinDirs[1], "own",
		`echo "netns=$CNI_NETNS" >>$log; echo '{"cniVersion":"1.0.0"}'`)
	leases := t.TempDir()
	networktest.Write(t, cni.config.ConfDir, "10.conflist", `{"cniVersion": "1.0.0", "name": "wires", "plugins": [{"type": "own"},
		{"type": "bridge", "bridge": "cnitest0", "ipam": {"type": "host-local", "dataDir": "`+leases+`", "ranges": [[{"subnet": "10.204.0.0/24"}]]}}]}`)
	pod, ns := networktest.NewPod(t)
	r := networktest.Attach(t, cni, pod)
	networktest.Must(t, cni.Check(t.Context(), pod.ID))
	id := netns.Identify(pod.NetnsPath)

	// Another pod's namespace, with an eth0 of its own, comes to be where the first one was.
	_, other := networktest.NewPod(t)
	networktest.Must(t, netns.Do(other, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = network.Interface
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	}))
	ns.Close()
	networktest.Must(t, syscall.Unmount(pod.NetnsPath, syscall.MNT_DETACH))
	networktest.Must(t, syscall.Mount(other.Name(), pod.NetnsPath, "", syscall.MS_BIND, ""))
	defer func() { _ = syscall.Unmount(pod.NetnsPath, syscall.MNT_DETACH) }()
	if id == "" || netns.Identify(pod.NetnsPath) == id {
		t.Fatalf("namespaces are called %q and %q", id, netns.Identify(pod.NetnsPath))
	}
	networktest.Wants(t, cni.Check(t.Context(), pod.ID), fault.Unavailable, pod.NetnsPath)
	networktest.Must(t, cni.Detach(t.Context(), pod, r))
	networktest.Must(t, netns.Do(other, func() error {
		_, err := netlink.LinkByName(network.Interface)
		return err
	}))
	if got := log(); !strings.HasSuffix(got, "DEL\nnetns=") {
		t.Errorf("the plugin was called as %s", got)
	}
	if left, _ := filepath.Glob(filepath.Join(leases, "wires", "10.*")); len(left) != 0 {
		t.Errorf("leases left: %v", left)
	}
}

// TestIdentify: what is no network namespace has no name, and a namespace has one wherever it is mounted.
func TestIdentify(t *testing.T) {
	networktest.RequireRoot(t)
	ns := networktest.NewNetns(t)
	again := filepath.Join(t.TempDir(), "again")
	networktest.Must(t, os.WriteFile(again, nil, 0o600))
	networktest.Must(t, syscall.Mount(ns.Name(), again, "", syscall.MS_BIND, ""))
	t.Cleanup(func() { networktest.Must(t, syscall.Unmount(again, syscall.MNT_DETACH)) })
	if a, b := netns.Identify(ns.Name()), netns.Identify(again); a == "" || a != b {
		t.Errorf("one namespace is %q and %q", a, b)
	}
	for _, path := range []string{"/proc/self/ns/mnt", "/proc/self/ns/pid", "/etc/passwd", "/nonexistent"} {
		if got := netns.Identify(path); got != "" {
			t.Errorf("%s is %q", path, got)
		}
	}
	if here := netns.Identify("/proc/thread-self/ns/net"); here == "" || here == netns.Identify(ns.Name()) {
		t.Errorf("the node's is %q", here)
	}
}

// TestDirectoryPlugins: plugins from a directory beside the configuration (CNI 1.1) are kept for DEL too.
func TestDirectoryPlugins(t *testing.T) {
	networktest.RequireRoot(t)
	cni, conf, bin := newCNI(t)
	log := networktest.Plugin(t, bin, "own", `[ $CNI_COMMAND = DEL ] || echo '`+networktest.Answer+`'`)
	networktest.Must(t, os.Mkdir(filepath.Join(conf, "wires"), 0o700))
	networktest.Write(t, filepath.Join(conf, "wires"), "10.conf", `{"type":"own"}`)
	networktest.Write(t, conf, "10.conflist", `{"cniVersion":"1.1.0","name":"wires"}`)
	pod, _ := networktest.NewPod(t)
	r := networktest.Attach(t, cni, pod)
	networktest.Must(t, os.RemoveAll(filepath.Join(conf, "wires")))
	networktest.Must(t, cni.Detach(t.Context(), pod, r))
	if got := log(); got != "ADD\nDEL" {
		t.Errorf("the plugin was called for %q", got)
	}
}

// TestDamagedAttachment: a record that cannot be read is set aside and costs no other pod.
func TestDamagedAttachment(t *testing.T) {
	networktest.RequireRoot(t)
	cni, _, _ := newCNI(t)
	id := networktest.NewID()
	networktest.Must(t, os.WriteFile(cni.path(id), []byte("nonsense"), 0o600))
	if err := cni.GC(t.Context()); err != nil {
		t.Error(err) // nothing is configured
	}
	networktest.Must(t, cni.Detach(t.Context(), network.Pod{ID: id}, nil))
	if _, err := os.Stat(cni.path(id) + ".damaged"); err != nil {
		t.Error(err)
	}
}

// FuzzConfig: no configuration file makes loading panic, and one that is loaded can be kept and loaded again.
func FuzzConfig(f *testing.F) {
	f.Add("x.conflist", []byte(`{"cniVersion":"1.1.0","name":"n","plugins":[{"type":"bridge","capabilities":{"dns":true}}]}`))
	f.Add("x.conf", []byte(`{"cniVersion":"0.3.1","name":"n","type":"ptp"}`))
	f.Add("x.conflist", []byte(`{"cniVersions":["1.0.0","0.4.0"],"name":"n","disableCheck":"true","plugins":[]}`))
	f.Fuzz(func(t *testing.T, name string, body []byte) {
		file := filepath.Join(t.TempDir(), "x"+filepath.Ext(filepath.Base(name)))
		if os.WriteFile(file, body, 0o600) != nil {
			t.Skip()
		}
		list, err := loadFile(file)
		if err != nil {
			return
		}
		if _, err := flatten(list); err != nil {
			t.Errorf("loaded, and not again: %v", err)
		}
	})
}
