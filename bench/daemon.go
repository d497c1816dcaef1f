package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// daemon is a runtime under measurement, with its command and address. It is not safe for
// concurrent use, but its client is.
type daemon struct {
	name    string
	program string
	args    []string
	env     []string
	socket  string // path
	root    string // directory of its data on the disk
	cgroup  string // of the daemon; those of its pods are below it, in /pods
	lasting string // name of a program that serves the node and outlives the daemon; "" for none
	verbose bool

	cniFile, cniList string // the path and content of Kuri's CNI configuration: see choose

	cmd    *exec.Cmd  // nil: not running
	ended  chan error // of cmd, once
	client *client
}

// newDaemon creates the directories and configuration of a runtime by its name. It starts nothing.
func newDaemon(name string, o *options, images *images) (*daemon, error) {
	dir, state := filepath.Join(o.dir, name), filepath.Join("/run", name+"-bench")
	for _, d := range []string{dir, state} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	d := &daemon{name: name, root: filepath.Join(dir, "root"), cgroup: "/" + name, verbose: o.verbose}
	d.env = append(os.Environ(), "PATH="+o.tools+":"+os.Getenv("PATH"))
	switch name {
	case "containerd":
		return d, d.containerd(dir, state, o.tools, images)
	case "kuri":
		return d, d.kuri(dir, state, o.bin, o.tools)
	}
	return nil, fmt.Errorf("-only: %q is not containerd or kuri", name)
}

// kuri prepares Kuri, which needs no configuration. The file that it gets only sets the path of a
// CNI configuration.
func (d *daemon) kuri(dir, state, bin, tools string) (err error) {
	d.program, d.lasting = filepath.Join(bin, "kurid"), "kuri-holder" // its keeper exits with it
	d.socket = filepath.Join(state, "kuri.sock")
	conf, ipam := cniPlaces(dir)
	d.cniFile = filepath.Join(conf, "10-bench.conflist")
	if d.cniList, err = cniConfig(ipam, "cni-kuri", "10.89.0.0/16"); err != nil {
		return err
	}
	file := filepath.Join(dir, "config.toml")
	if err := os.MkdirAll(conf, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file, fmt.Appendf(nil, "[network]\ncni_conf_dir = %q\ncni_bin_dirs = [%q]\n", conf, tools),
		0o644); err != nil {
		return err
	}
	d.args = []string{"--config", file, "--root", d.root, "--state", state, "--listen", "unix://" + d.socket,
		"--log-level", "warn"}
	for _, p := range []string{d.program, filepath.Join(bin, d.lasting)} {
		if _, err := os.Stat(p); err != nil {
			return fmt.Errorf("%w: build Kuri first, with make", err)
		}
	}
	return nil
}

// start starts the daemon and waits until it is ready for pods. It returns the time that took.
func (d *daemon) start(ctx context.Context) (time.Duration, error) {
	cmd := exec.Command(d.program, d.args...)
	cmd.Env = d.env
	if d.verbose {
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	}
	begin := time.Now()
	if err := startIn(cmd, d.cgroup+"/daemon"); err != nil {
		return 0, fmt.Errorf("start %s: %w", d.name, err)
	}
	d.cmd, d.ended = cmd, make(chan error, 1)
	go func(ended chan<- error) { ended <- cmd.Wait() }(d.ended)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := d.ready(ctx); err != nil {
		return 0, fmt.Errorf("%s is not ready: %w (-v shows its log)", d.name, err)
	}
	return time.Since(begin), nil
}

// ready waits for the socket, then until Version succeeds and every condition of Status is true.
func (d *daemon) ready(ctx context.Context) error {
	const often = 500 * time.Microsecond
	for {
		conn, err := net.Dial("unix", d.socket)
		if err == nil {
			conn.Close()
			break
		}
		if err := sleep(ctx, often); err != nil {
			return err
		}
	}
	c, err := dial(d.socket)
	if err != nil {
		return err
	}
	d.client = c
	for {
		err := c.ready(ctx)
		if err == nil {
			return nil
		}
		if sleep(ctx, often) != nil {
			return err
		}
	}
}

// stop ends the daemon with SIGTERM, as a service manager does. If whole is true it also ends the
// programs that outlive it.
func (d *daemon) stop(whole bool) error {
	if d.client != nil {
		d.client.close()
		d.client = nil
	}
	if d.cmd != nil {
		d.cmd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(20*time.Second, func() { d.cmd.Process.Kill() })
		err := <-d.ended
		kill.Stop()
		d.cmd = nil
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return fmt.Errorf("stop %s: %w", d.name, err)
		}
	}
	if !whole || d.lasting == "" {
		return nil
	}
	for begin := time.Now(); time.Since(begin) < 10*time.Second; time.Sleep(time.Millisecond) {
		all, err := processes(d.name)
		if err != nil {
			return err
		}
		left := 0
		for _, p := range all {
			if p.program == d.lasting {
				syscall.Kill(p.pid, syscall.SIGKILL)
				left++
			}
		}
		if left == 0 {
			return nil
		}
	}
	return fmt.Errorf("stop %s: %s does not end", d.name, d.lasting)
}

// died returns an error if the daemon has exited although nobody stopped it.
func (d *daemon) died() error {
	if d.cmd == nil {
		return nil
	}
	select {
	case err := <-d.ended:
		d.ended <- err // for stop
		return fmt.Errorf("%s is gone: %v (-v shows its log)", d.name, d.cmd.ProcessState)
	case <-time.After(100 * time.Millisecond): // its connections break slightly before it exits
		return nil
	}
}

// end stops all processes of the runtime; those that do not exit end with the cell.
func (d *daemon) end() {
	if err := d.stop(true); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// containerd prepares containerd with the configuration of an ordinary node and the settings that
// this machine needs.
func (d *daemon) containerd(dir, state, tools string, images *images) error {
	d.program = filepath.Join(tools, "containerd")
	d.socket = filepath.Join(state, "containerd.sock")
	conf := filepath.Join(dir, "config.toml")
	d.args = []string{"--config", conf, "--log-level", "warn"}
	confDir, ipam := cniPlaces(dir)
	network, err := cniConfig(ipam, "cni-bench", "10.88.0.0/16")
	if err != nil {
		return err
	}
	files := map[string]string{
		conf: containerdConfig(dir, d.root, state, tools, d.socket, images.reference(pauseImage)),
		filepath.Join(confDir, "10-bench.conflist"):                 network,
		filepath.Join(dir, "certs.d", images.address, "hosts.toml"): fmt.Sprintf("server = %q\n", "http://"+images.address),
	}
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// containerdConfig returns a configuration that differs from the defaults in its paths, in cgroupfs
// as the cgroup driver of both runtimes, and in restrict_oom_score_adj, without which nothing
// starts if CAP_SYS_RESOURCE is missing.
func containerdConfig(dir, root, state, tools, socket, pause string) string {
	return fmt.Sprintf(`version = 4
root = %[1]q
state = %[2]q

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = %[3]q
[plugins."io.containerd.cri.v1.images".registry]
  config_path = %[4]q

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = [%[5]q]
  conf_dir = %[6]q
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = %[7]q
  SystemdCgroup = false

[plugins."io.containerd.internal.v1.opt"]
  path = %[8]q
[plugins."io.containerd.server.v1.grpc"]
  address = %[9]q
[plugins."io.containerd.server.v1.ttrpc"]
  address = "%[9]s.ttrpc"
`, root, state, pause, filepath.Join(dir, "certs.d"), tools, filepath.Join(dir, "net.d"),
		filepath.Join(tools, "runc"), filepath.Join(dir, "opt"), socket)
}

// cniConfig returns the usual network of a node: a bridge with addresses from host-local, masquerading and
// portmap. The plugins call nft, or iptables if nft is missing. Without either they cannot masquerade.
func cniConfig(ipam, bridge, subnet string) (string, error) {
	masquerade, ports := "", `"snat": true`
	if _, err := exec.LookPath("nft"); err == nil {
		masquerade, ports = `"ipMasqBackend": "nftables",`, `"backend": "nftables"`
	} else if _, err := exec.LookPath("iptables"); err != nil {
		return "", errors.New("the CNI plugins need nft or iptables to masquerade: install Debian's nftables")
	}
	return strings.TrimSpace(fmt.Sprintf(`
{
  "cniVersion": "1.0.0",
  "name": "bench",
  "plugins": [
    {
      "type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": true, %s "hairpinMode": true,
      "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}
    },
    {"type": "portmap", "capabilities": {"portMappings": true}, %s}
  ]
}`, bridge, masquerade, ipam, subnet, ports)), nil
}

// sleep waits for d, or returns the context's error.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
