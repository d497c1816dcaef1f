package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

const (
	nsPod       = runtimeapi.NamespaceMode_POD
	nsContainer = runtimeapi.NamespaceMode_CONTAINER
	nsNode      = runtimeapi.NamespaceMode_NODE
)

// With network.isolate pods of one Kubernetes namespace reach each other and pods of different ones
// do not, even after a restart.
func TestIsolatedNamespaces(t *testing.T) {
	d := harness.Start(t, harness.Options{Config: "[network]\nisolate = true\n"})
	d.Pull(t, d.Registry.Push(t, "web:1", harness.Web(t)))
	image := d.PullBusybox(t)
	start := func(name, namespace string, c *runtimeapi.ContainerConfig) (pod, container string) {
		p := harness.Pod(name)
		p.Metadata.Namespace = namespace
		pod = d.RunPod(t, p)
		return pod, d.Run(t, pod, c, p)
	}
	web, _ := start("web", "blue", harness.Container("web", d.Registry.Host+"/web:1"))
	_, friend := start("friend", "blue", harness.Container("asks", image, "sleep", "1000"))
	_, stranger := start("stranger", "red", harness.Container("asks", image, "sleep", "1000"))
	network := d.PodStatus(t, web).Network
	check := func(when string) {
		t.Helper()
		var strangers sync.WaitGroup
		defer strangers.Wait()
		for _, ip := range []string{network.Ip, network.AdditionalIps[0].Ip} {
			url := "http://" + net.JoinHostPort(ip, "8080") + "/"
			if page := get(t, url); !strings.Contains(page, "A pod runs.") {
				t.Errorf("%s: the node gets from %s:\n%s", when, url, page)
			}
			if page := d.Output(t, friend, "wget", "-q", "-O-", url); !strings.Contains(page, "A pod runs.") {
				t.Errorf("%s: a pod of the namespace gets from %s:\n%s", when, url, page)
			}
			strangers.Go(func() { // gets no answer, which takes time
				if page, _, code := d.Exec(t, stranger, "timeout", "2", "wget", "-q", "-O-", url); code == 0 || code == 127 {
					t.Errorf("%s: a pod of another namespace gets from %s:\n%s", when, url, page)
				}
			})
		}
	}
	check("at first")
	d.Restart(t)
	check("after a restart")
}

func TestHostnameDNSAndSysctls(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	p := harness.Pod("names")
	p.Hostname = "a-name"
	p.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"one.test", "two.test"},
		Options: []string{"ndots:3"}}
	p.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80"}
	pod := d.RunPod(t, p)
	c := d.Run(t, pod, harness.Container("main", image, "sleep", "1000"), p)
	for command, want := range map[string]string{
		"hostname":             "a-name\n",
		"cat /etc/resolv.conf": "search one.test two.test\nnameserver 192.0.2.53\noptions ndots:3\n",
		"cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start": "1\n80\n",
		"cat /etc/hostname": "a-name\n",
	} {
		if got := d.Output(t, c, strings.Fields(command)...); sortLines(got) != sortLines(want) {
			t.Errorf("%s says %q, want %q", command, got, want)
		}
	}
	if hosts := d.Output(t, c, "cat", "/etc/hosts"); !strings.Contains(hosts, "localhost") ||
		!strings.Contains(hosts, "a-name") {
		t.Errorf("/etc/hosts is:\n%s", hosts)
	}

	for name, sysctl := range map[string]string{"unknown": "kernel.no_such_thing", "of the node": "vm.swappiness",
		"a path": "kernel/../../etc/passwd"} {
		t.Run(name, func(t *testing.T) {
			p := harness.Pod("refused")
			p.Linux.Sysctls = map[string]string{sysctl: "1"}
			_, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p})
			harness.WantError(t, err, codes.InvalidArgument, sysctl)
		})
	}
}

func sortLines(s string) string {
	cmd := exec.Command("sort")
	cmd.Stdin = strings.NewReader(s)
	out, err := cmd.Output()
	if err != nil {
		panic(err)
	}
	return string(out)
}

// The namespaces that a container shares, for each mode of each kind.
func TestNamespaceModes(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	node := func(kind string) string {
		t.Helper()
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	for _, test := range []struct {
		name              string
		network, pid, ipc runtimeapi.NamespaceMode
	}{
		{"kubelet's default", nsPod, nsContainer, nsPod},
		{"shared processes", nsPod, nsPod, nsPod},
		{"all of the node", nsNode, nsNode, nsNode},
		{"node's network", nsNode, nsContainer, nsPod},
		{"node's ipc", nsPod, nsContainer, nsNode},
		{"node's processes", nsPod, nsNode, nsPod},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := harness.Pod("modes")
			if test.network == nsNode {
				p.Hostname = ""
			}
			modes := &runtimeapi.NamespaceOption{Network: test.network, Pid: test.pid, Ipc: test.ipc}
			p.Linux.SecurityContext.NamespaceOptions = modes
			pod := d.RunPod(t, p)
			one, two := harness.Container("one", image, "sleep", "1001"), harness.Container("two", image, "sleep", "1002")
			one.Linux.SecurityContext.NamespaceOptions, two.Linux.SecurityContext.NamespaceOptions = modes, modes
			first, second := d.Run(t, pod, one, p), d.Run(t, pod, two, p)
			for kind, mode := range map[string]runtimeapi.NamespaceMode{"net": test.network, "pid": test.pid, "ipc": test.ipc} {
				a := strings.TrimSpace(d.Output(t, first, "readlink", "/proc/self/ns/"+kind))
				b := strings.TrimSpace(d.Output(t, second, "readlink", "/proc/self/ns/"+kind))
				if shared, want := a == b, mode != nsContainer; shared != want {
					t.Errorf("%s: the containers share it: %v, want %v", kind, shared, want)
				}
				if ofNode, want := a == node(kind), mode == nsNode; ofNode != want {
					t.Errorf("%s: it is the node's: %v, want %v", kind, ofNode, want)
				}
			}
			// A started container executes its command a moment later.
			harness.Eventually(t, 5*time.Second, "what one container sees of the other's process", func() error {
				ps := d.Output(t, first, "ps")
				if sees, want := strings.Contains(ps, "sleep 1002"), test.pid != nsContainer; sees != want {
					return fmt.Errorf("sees it: %v, want %v:\n%s", sees, want, ps)
				}
				return nil
			})
			if got := d.PodStatus(t, pod).Linux.Namespaces.Options; got.Network != modes.Network || got.Pid != modes.Pid ||
				got.Ipc != modes.Ipc {
				t.Errorf("the status has the modes %v, want %v", got, modes)
			}
			d.RemovePod(t, pod)
		})
	}
}

// In a pod with a shared process namespace orphans are reaped, and the exit of one container does
// not end the others.
func TestSharedProcessesAreReaped(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	p := harness.Pod("reaps")
	modes := &runtimeapi.NamespaceOption{Pid: nsPod}
	p.Linux.SecurityContext.NamespaceOptions = modes
	pod := d.RunPod(t, p)
	run := func(name string, command ...string) string {
		c := harness.Container(name, image, command...)
		c.Linux.SecurityContext.NamespaceOptions = modes
		return d.Run(t, pod, c, p)
	}
	stays := run("stays", "sleep", "1000")
	if s := d.WaitExit(t, run("ends", "sh", "-c", "(sleep 0.2; exit 3) & exit 4")); s.ExitCode != 4 {
		t.Errorf("exit code %d, want 4", s.ExitCode)
	}
	d.Output(t, stays, "sleep", "1")
	if ps := d.Output(t, stays, "ps", "-o", "stat,args"); strings.Contains(ps, "Z ") {
		t.Errorf("a zombie is left:\n%s", ps)
	}
}

// A pod's metadata is returned unchanged in the status and in lists, and lists are filtered by it.
func TestMetadataVerbatimAndFilters(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	p := harness.Pod("says")
	p.Metadata.Attempt = 7
	p.Labels = map[string]string{"app": "says", "empty": "", "unicode": "栗 \"quoted\"\nline"}
	p.Annotations = map[string]string{"a/b": "{\"json\": true}", "io.kubernetes.cri.sandbox-id": "not yours"}
	pod := d.RunPod(t, p)
	other := d.RunPod(t, harness.Pod("other"))

	status := d.PodStatus(t, pod)
	if !proto.Equal(status.Metadata, p.Metadata) || fmt.Sprint(status.Labels) != fmt.Sprint(p.Labels) ||
		fmt.Sprint(status.Annotations) != fmt.Sprint(p.Annotations) {
		t.Errorf("the status has %v %q %q", status.Metadata, status.Labels, status.Annotations)
	}
	ready, notReady := runtimeapi.PodSandboxState_SANDBOX_READY, runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	if _, err := d.Runtime.StopPodSandbox(t.Context(),
		&runtimeapi.StopPodSandboxRequest{PodSandboxId: other}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   []string
	}{
		{"none", nil, []string{pod, other}},
		{"id", &runtimeapi.PodSandboxFilter{Id: pod}, []string{pod}},
		{"start of id", &runtimeapi.PodSandboxFilter{Id: pod[:10]}, []string{pod}},
		{"unknown id", &runtimeapi.PodSandboxFilter{Id: "nobody"}, nil},
		{"ready", &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: ready}}, []string{pod}},
		{"not ready", &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: notReady}},
			[]string{other}},
		{"label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "says"}}, []string{pod}},
		{"two labels, one wrong", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "says", "empty": "x"}},
			nil},
		{"id and state", &runtimeapi.PodSandboxFilter{Id: pod, State: &runtimeapi.PodSandboxStateValue{State: notReady}},
			nil},
	} {
		resp, err := d.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: test.filter})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]bool{}
		for _, i := range resp.Items {
			got[i.Id] = true
		}
		if len(got) != len(test.want) {
			t.Errorf("filter by %s: %v, want %v", test.name, got, test.want)
		}
		for _, id := range test.want {
			if !got[id] {
				t.Errorf("filter by %s: %s is missing", test.name, id)
			}
		}
	}
}

// Running the same pod twice gives one pod.
func TestRunPodIsOne(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	p := harness.Pod("one")
	p.LogDirectory = t.TempDir()
	ids := make(chan string, 8)
	for range cap(ids) {
		go func() {
			resp, err := d.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p})
			if err != nil {
				t.Errorf("run: %v", err)
			}
			ids <- resp.GetPodSandboxId()
		}()
	}
	first := <-ids
	for range cap(ids) - 1 {
		if id := <-ids; id != first {
			t.Errorf("two pods: %s and %s", first, id)
		}
	}
	for range 2 {
		if _, err := d.Runtime.StopPodSandbox(t.Context(),
			&runtimeapi.StopPodSandboxRequest{PodSandboxId: first}); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	for range 2 {
		if _, err := d.Runtime.RemovePodSandbox(t.Context(),
			&runtimeapi.RemovePodSandboxRequest{PodSandboxId: first}); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
}

func TestPodsThatAreRefused(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	for _, test := range []struct {
		name    string
		handler string
		change  func(*runtimeapi.PodSandboxConfig)
		code    codes.Code
		says    string
	}{
		{"handler", "kata", func(p *runtimeapi.PodSandboxConfig) {}, codes.NotFound, "kata"},
		{"no metadata", "", func(p *runtimeapi.PodSandboxConfig) { p.Metadata = nil }, codes.InvalidArgument, "metadata"},
		{"no name", "", func(p *runtimeapi.PodSandboxConfig) { p.Metadata.Name = "" }, codes.InvalidArgument, "name"},
		{"hostname", "", func(p *runtimeapi.PodSandboxConfig) { p.Hostname = strings.Repeat("x", 65) }, codes.InvalidArgument,
			"hostname"},
		{"DNS", "", func(p *runtimeapi.PodSandboxConfig) {
			p.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"192.0.2.1\nnameserver 6.6.6.6"}}
		}, codes.InvalidArgument, "dns"},
		{"log directory", "", func(p *runtimeapi.PodSandboxConfig) { p.LogDirectory = "logs/here" }, codes.InvalidArgument,
			"log_directory"},
		{"target process namespace", "", func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		}, codes.InvalidArgument, "pid"},
		{"user namespace", "", func(p *runtimeapi.PodSandboxConfig) {
			p.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: nsPod}
		}, codes.InvalidArgument, "userns"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := harness.Pod("refused")
			test.change(p)
			_, err := d.Runtime.RunPodSandbox(t.Context(),
				&runtimeapi.RunPodSandboxRequest{Config: p, RuntimeHandler: test.handler})
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), test.says) {
				t.Errorf("it does not say %q: %v", test.says, err)
			}
			harness.WantError(t, err, test.code)
			list, err := d.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
			if err != nil || len(list.Items) > 0 {
				t.Errorf("a pod is listed: %v, %v", list, err)
			}
		})
	}
}

// firstOf returns the pid of process 1 of the PID namespace that a process is in.
func firstOf(t *testing.T, pid int) int {
	t.Helper()
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		t.Fatal(err)
	}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		status, _ := os.ReadFile(dir + "/status")
		_, rest, _ := strings.Cut(string(status), "NSpid:")
		pids := strings.Fields(strings.SplitN(rest, "\n", 2)[0])
		if its, err := os.Readlink(dir + "/ns/pid"); err == nil && its == namespace && len(pids) > 1 &&
			pids[len(pids)-1] == "1" {
			first, err := strconv.Atoi(filepath.Base(dir))
			if err != nil {
				t.Fatal(err)
			}
			return first
		}
	}
	t.Fatalf("the PID namespace of process %d has no first process", pid)
	return 0
}

// Containers are in cgroups below the one that the client names.
func TestCgroupParent(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	p := harness.Pod("parent")
	p.Linux.CgroupParent = "/kubepods/burstable/podX"
	p.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	pod := d.RunPod(t, p)
	config := harness.Container("main", image, "sleep", "100001")
	config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	c := d.Run(t, pod, config, p)
	pid := harness.FindProcess(t, "sleep 100001")
	// The pod's own process counts towards the pod's overhead: its usage belongs to the parent
	// cgroup and to no container. (It uses no devices, so it has no cgroup for them.)
	for who, process := range map[string]struct {
		pid int
		own string
	}{"the container": {pid, c}, "the pod's first process": {firstOf(t, pid), pod}} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", process.pid))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			path := strings.TrimSpace(line[strings.LastIndex(line, ":")+1:])
			inPod := strings.HasPrefix(path, "/kubepods/burstable/podX/") && strings.Contains(path, process.own)
			if !inPod && (process.own == c || !strings.Contains(line, ":devices:")) {
				t.Errorf("%s is in %s", who, strings.TrimSpace(line))
			}
		}
	}
	d.RemovePod(t, pod)
	// The parent belongs to the client: a kubelet removes it. Here the container's start created
	// it, and it must be gone before the leak check.
	harness.RemoveCgroup(t, "/kubepods")
}
