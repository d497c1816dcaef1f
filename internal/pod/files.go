package pod

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/record"
	"github.com/kuri-cri/kuri/internal/spec"
)

// hostname returns the host name that the pod's containers see.
func hostname(r *SandboxRecord) string {
	if name := r.config().GetHostname(); name != "" {
		return name
	}
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "localhost"
}

// writeFiles writes the pod's own resolv.conf, hosts and hostname. A kubelet mounts its own hosts file over ours.
func (p *Pods) writeFiles(r *SandboxRecord, attached *network.Result) error {
	host, err := nodeResolvConf(attached != nil)
	if err != nil {
		return err
	}
	resolv, err := spec.ResolvConf(r.config().GetDnsConfig(), host)
	if err != nil {
		return err
	}
	hosts, err := hostsFile(r, attached)
	if err != nil {
		return err
	}
	for name, body := range map[string][]byte{
		"resolv.conf": resolv,
		"hosts":       hosts,
		"hostname":    []byte(hostname(r) + "\n"),
	} {
		path := p.paths.podFile(r.ID, name)
		if err := os.WriteFile(path, body, 0o644); err != nil {
			return fault.As(diskKind(err), fmt.Errorf("write the pod's %s: %w", name, err))
		}
		if err := giveToRoot(path, r.config()); err != nil {
			return err
		}
	}
	return p.labelFiles(r, false)
}

// ensureFiles restores the pod's files and the copy of its record if they were removed from the state directory.
func (p *Pods) ensureFiles(r *SandboxRecord) error {
	if _, err := os.Lstat(p.paths.podFile(r.ID, "hostname")); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	slog.Warn("the files of a pod are gone from the state directory; writing them again", "pod", r.name(), "dir", p.paths.podState(r.ID))
	if err := os.MkdirAll(p.paths.podState(r.ID), 0o711); err != nil {
		return fault.As(diskKind(err), fmt.Errorf("make the pod's directory: %w", err))
	}
	noteCopy(record.Write(p.paths.podCopy(r.ID), sandboxFormat, r))
	return p.writeFiles(r, r.Network)
}

// giveToRoot makes root of the pod's containers the owner of a file.
func giveToRoot(path string, pod *runtime.PodSandboxConfig) error {
	uid, gid := spec.HostRoot(pod)
	if uid == 0 && gid == 0 {
		return nil
	}
	return os.Chown(path, int(uid), int(gid))
}

func hostsFile(r *SandboxRecord, attached *network.Result) ([]byte, error) {
	if attached == nil { // on the node's network, with the node's names
		body, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("read the node's /etc/hosts: %w", err)
		}
		return body, nil
	}
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	name := hostname(r)
	if strings.ContainsAny(name, " \t#") {
		return b.Bytes(), nil // the kernel accepts such a name, but no line of hosts(5) can contain it
	}
	for _, ip := range attached.IPs {
		fmt.Fprintf(&b, "%s\t%s\n", ip, name)
	}
	return b.Bytes(), nil
}

// diskKind returns the kind of an error of a full disk or quota, "" for any other error.
func diskKind(err error) fault.Kind {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fault.Exhausted
	}
	return ""
}
