package server_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
)

func TestPodInit(t *testing.T) {
	n := newNode(t)
	box := n.sandbox(func(r *api.CreateSandboxRequest) {
		r.Pid, r.CgroupsPath, r.OomScoreAdj = true, n.cgroup+"/init", 500
	})
	if box.InitPid == 0 || box.Namespaces["pid"] == "" {
		t.Fatalf("%+v", box)
	}
	proc := fmt.Sprintf("/proc/%d/", box.InitPid)
	if body, _ := os.ReadFile(proc + "oom_score_adj"); strings.TrimSpace(string(body)) != "500" {
		t.Errorf("oom_score_adj %q", body)
	}
	status, _ := os.ReadFile(proc + "status")
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1",
		"Uid:\t65535", "Name:\tkuri-init"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("no %q in %s", want, status)
		}
	}
	if cg, _ := os.ReadFile(proc + "cgroup"); !strings.Contains(string(cg), n.cgroup+"/init") {
		t.Errorf("cgroup %s", cg)
	}
	if root, err := os.ReadDir(proc + "root"); err != nil || len(root) != 1 || root[0].Name() != "proc" {
		t.Errorf("its root: %v, %v", root, err)
	}
	smaps, _ := os.ReadFile(proc + "smaps_rollup")
	t.Logf("memory of the pod's init:\n%s", smaps)

	a := n.run(box, "sleep 4340")
	b := n.run(box, `(sleep 0.1; exit 3) & exec sh -c 'setsid sleep 0.2 & ps; sleep 0.5; ps'`)
	c := n.wait(b)
	out := n.output(b)
	if c.Exit.Code != 0 || !strings.Contains(out, "sleep 4340") || !strings.Contains(out, "kuri-init") {
		t.Errorf("exit %+v, output %s", c.Exit, out)
	}
	// Processes that b left behind are killed with its cgroup and reaped by the init: no zombies.
	_, ps, _ := n.exec(a, "ps -o pid,stat,args")
	if strings.Contains(ps, "Z") {
		t.Errorf("zombies: %s", ps)
	}
	// When a container without a private PID namespace exits, its children are killed.
	b = n.run(box, "setsid sleep 4341 & exit 0")
	n.wait(b)
	n.wantNoProcess(a, "4341")
}

func TestHostPIDOrphansAreReaped(t *testing.T) {
	n := newNode(t)
	box := n.sandbox()
	j := n.run(box, `setsid sh -c 'sleep 0.1 & sleep 0.1 & exit 0' & sleep 4350`, func(j *job) {
		j.spec.Linux.Namespaces = slices.DeleteFunc(j.spec.Linux.Namespaces,
			func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
		// /proc of the host's PID namespace.
		j.spec.Mounts[0] = specs.Mount{Destination: "/proc", Type: "bind", Source: "/proc", Options: []string{"rbind", "ro"}}
	})
	info, err := n.Info(t.Context())
	n.must(err)
	time.Sleep(300 * time.Millisecond) // until the orphans have exited
	if !eventually(func() bool { return len(zombies(int(info.Pid))) == 0 }) {
		t.Errorf("zombies are left: %v", zombies(int(info.Pid)))
	}
	x, _, _ := n.exec(j, "setsid sleep 4351 & exit 0")
	if x != 0 {
		t.Errorf("%+v", x)
	}
	if !eventually(func() bool { return len(n.processes("4351")) == 1 }) {
		t.Error("what the exec has left behind is not there")
	}
	n.must(n.Delete(t.Context(), j.Id))
	if pids := n.processes("4351"); len(pids) > 0 {
		t.Errorf("processes are left: %v", pids)
	}
}

func TestSharedNamespacesAndShm(t *testing.T) {
	n := newNode(t)
	box := n.sandbox(func(r *api.CreateSandboxRequest) { r.ShmBytes = 8 << 20 })
	a := n.run(box, "sleep 1000")
	n.exec(a, "echo shared >/dev/shm/note")
	exit, out := n.finish(box,
		`cat /dev/shm/note; stat -c %a /dev/shm; df -k /dev/shm | tail -1; ip -o link; grep -c . /proc/self/mountinfo`)
	for _, want := range []string{"shared\n", "1777\n", "8192", "LOOPBACK,UP"} {
		if !strings.Contains(out, want) {
			t.Errorf("exit %+v: no %q in %s", exit, want, out)
		}
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		_, inner, _ := n.exec(a, "readlink /proc/self/ns/"+kind)
		outer, _ := os.Readlink("/proc/self/ns/" + kind)
		if strings.TrimSpace(inner) == outer || inner == "" {
			t.Errorf("%s namespace is the host's: %q", kind, inner)
		}
	}
	if _, err := os.Stat("/run/netns/kuri-" + box.Id); err != nil {
		t.Error(err)
	}
	again, err := n.CreateSandbox(t.Context(), &api.CreateSandboxRequest{Id: box.Id})
	if err != nil || again.Namespaces["ipc"] != box.Namespaces["ipc"] {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestSysctls(t *testing.T) {
	n := newNode(t)
	box := n.sandbox(func(r *api.CreateSandboxRequest) {
		r.Uts = true
		r.Sysctls = map[string]string{
			"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "net/ipv4/ip_unprivileged_port_start": "80",
			"kernel.domainname":             "lab.test",
			"net.ipv4.conf.eth9.forwarding": "1", // left to the caller
		}
		r.DefaultSysctls = map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647",
			"net.ipv4.ip_local_port_range": "wrong", "net.no.such.thing": "1", // only logged
		}
	})
	_, out := n.finish(box, "cd /proc/sys; cat net/ipv4/ip_forward kernel/shm_rmid_forced net/ipv4/ip_unprivileged_port_start kernel/domainname net/ipv4/ping_group_range")
	if out != "1\n1\n80\nlab.test\n0\t2147483647\n" {
		t.Errorf("output %q", out)
	}
	for name, change := range map[string]func(*api.CreateSandboxRequest){
		"vm.swappiness":          func(*api.CreateSandboxRequest) {},
		"kernel.shm_rmid_forced": func(r *api.CreateSandboxRequest) { r.Ipc, r.ShmBytes = false, 0 },
		"net.ipv4.ip_forward":    func(r *api.CreateSandboxRequest) { r.Network = false },
		"kernel.domainname":      func(*api.CreateSandboxRequest) {},
		"fs.mqueue.none":         func(*api.CreateSandboxRequest) {},
		"net/../../etc/passwd":   func(*api.CreateSandboxRequest) {},
	} {
		id := newID()
		req := &api.CreateSandboxRequest{Id: id, Network: true, Ipc: true, NetnsPath: "/run/netns/kuri-" + id,
			Sysctls: map[string]string{name: "1"}}
		change(req)
		_, err := n.CreateSandbox(t.Context(), req)
		wantKind(t, err, fault.Invalid)
		if err != nil && !strings.Contains(err.Error(), name) {
			t.Errorf("the error does not name %s: %v", name, err)
		}
		if _, err := os.Stat("/run/netns/kuri-" + id); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the network namespace is left", name)
		}
	}
}
