package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/layer"
)

// loadable returns Pods with directories only, enough to load records.
func loadable(t testing.TB, root, state string) *Pods {
	t.Helper()
	layers, err := layer.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(layers.Close)
	return &Pods{Options: Options{Root: root, State: state, Layers: layers}, paths: paths{root: root, state: state},
		view: newView(), closing: make(chan struct{})}
}

// writeMany writes the records of pods with three containers each, of the size of a kubelet's.
func writeMany(t testing.TB, p paths, count int) (pods []string) {
	t.Helper()
	for n := range count {
		meta := &runtime.PodSandboxMetadata{Name: fmt.Sprint("web-7c5ddbdf54-", n), Namespace: "default", Uid: newID()[:32]}
		s := &SandboxRecord{ID: newID(), State: Ready, CreatedAt: time.Now().UnixNano(), BootID: "boot",
			NetnsPath:    "/run/netns/kuri-x",
			CgroupParent: "/kubepods/burstable/pod" + meta.Uid}
		s.Config = message[*runtime.PodSandboxConfig]{&runtime.PodSandboxConfig{
			Metadata: meta, Hostname: meta.Name, LogDirectory: "/var/log/pods/default_" + meta.Name, Labels: podLabels(meta),
			DnsConfig: &runtime.DNSConfig{Servers: []string{"10.96.0.10"},
				Searches: []string{"default.svc.cluster.local", "svc.cluster.local"}, Options: []string{"ndots:5"}},
			Annotations: map[string]string{"kubernetes.io/config.seen": "2026-11-30T06:00:00Z",
				"kubernetes.io/config.source": "api"},
			Linux: &runtime.LinuxPodSandboxConfig{CgroupParent: s.CgroupParent,
				SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{}}},
		}}
		for _, dir := range []string{p.podDir(s.ID), p.podState(s.ID)} {
			must(t, os.MkdirAll(dir, 0o700))
		}
		must(t, p.writeSandbox(s))
		for i := range 3 {
			c := &ContainerRecord{ID: newID(), SandboxID: s.ID, State: Running, ImageID: "sha256:1",
				ImageName: "registry.k8s.io/web:1", Pid: 100,
				Layers:      []digest.Digest{digest.FromString("a"), digest.FromString("b"), digest.FromString("c")},
				CgroupsPath: s.CgroupParent + "/x",
				StopSignal:  15, StopName: "SIGNAL_SIGTERM", CreatedAt: s.CreatedAt, StartedAt: s.CreatedAt}
			config := &runtime.ContainerConfig{
				Metadata: &runtime.ContainerMetadata{Name: fmt.Sprint("c", i)}, Image: &runtime.ImageSpec{Image: "sha256:1"},
				Command: []string{"/web"},
				Args:    []string{"--port", "8080"}, WorkingDir: "/", Labels: podLabels(meta), LogPath: "c/0.log",
				Linux: &runtime.LinuxContainerConfig{Resources: &runtime.LinuxContainerResources{CpuShares: 100,
					MemoryLimitInBytes: 64 << 20},
					SecurityContext: &runtime.LinuxContainerSecurityContext{RunAsUser: &runtime.Int64Value{Value: 1000},
						MaskedPaths: []string{"/proc/kcore", "/proc/keys"}}},
			}
			for e := range 20 {
				config.Envs = append(config.Envs, &runtime.KeyValue{Key: fmt.Sprint("KUBERNETES_SERVICE_PORT_", e),
					Value: []byte("tcp://10.96.0.1:443")})
			}
			for m := range 4 {
				config.Mounts = append(config.Mounts, &runtime.Mount{ContainerPath: fmt.Sprint("/var/run/secrets/", m),
					HostPath: fmt.Sprint("/var/lib/kubelet/pods/", meta.Uid, "/volumes/", m), Readonly: true})
			}
			c.Config = message[*runtime.ContainerConfig]{config}
			for _, dir := range []string{p.containerDir(s.ID, c.ID), p.bundle(s.ID, c.ID)} {
				must(t, os.MkdirAll(dir, 0o700))
			}
			must(t, p.writeContainer(c))
		}
		pods = append(pods, s.ID)
	}
	return pods
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A damaged or missing record affects only its own pod or container, and not even that if there is a copy. A container
// directory with neither is discarded.
func TestManyRecordsAreLoaded(t *testing.T) {
	root, state := t.TempDir(), t.TempDir()
	p := loadable(t, root, state)
	const count = 50
	pods := writeMany(t, p.paths, count)
	containers := func(pod string) []string { return namesIn(filepath.Join(p.paths.podDir(pod), "containers")) }
	spoil := func(path string) { must(t, os.WriteFile(path, []byte(`{"version":1,"data":{"id":`), 0o600)) }

	spoil(p.paths.podRecord(pods[0])) // has a copy
	must(t, os.Remove(p.paths.podRecord(pods[1])))
	must(t, os.RemoveAll(p.paths.podDir(pods[2]))) // all its copies are there
	spoil(p.paths.podRecord(pods[3]))
	spoil(p.paths.podCopy(pods[3]))
	lost, torn := containers(pods[4])[0], containers(pods[5])[1]
	must(t, errors.Join(os.Remove(p.paths.containerRecord(pods[4], lost)),
		os.Remove(p.paths.containerCopy(pods[4], lost))))
	spoil(p.paths.containerRecord(pods[5], torn))
	spoil(p.paths.containerCopy(pods[5], torn))

	todo := p.load()
	if len(p.sandboxes) != count-1 || len(p.containers) != 3*(count-1)-2 {
		t.Errorf("%d pods and %d containers", len(p.sandboxes), len(p.containers))
	}
	if p.sandboxes[pods[3]] != nil || p.containers[lost] != nil || p.containers[torn] != nil {
		t.Error("what cannot be read is there")
	}
	if len(todo.pods) != 0 || len(todo.rests) != 1 || todo.rests[0].ID != lost {
		t.Errorf("to be removed: %v %v", todo.pods, todo.rests)
	}
	for _, id := range pods[:3] {
		if s := p.sandboxes[id]; s == nil || len(s.containers) != 3 || s.Record().State != Ready {
			t.Errorf("pod %s: %v", id, s)
		}
	}
}

// BenchmarkLoad reads the records of a thousand pods with three containers each, as a start does. On a busy machine the
// relevant number is cpu-ms.
func BenchmarkLoad(b *testing.B) {
	root, state := b.TempDir(), b.TempDir()
	p := loadable(b, root, state)
	writeMany(b, p.paths, 1000)
	before := cpuTime()
	for b.Loop() {
		p := loadable(b, root, state)
		p.load()
		if len(p.sandboxes) != 1000 || len(p.containers) != 3000 {
			b.Fatal(len(p.sandboxes), len(p.containers))
		}
	}
	b.ReportMetric(float64((cpuTime()-before).Milliseconds())/float64(b.N), "cpu-ms/op")
}

// cpuTime returns the CPU time that this process has used.
func cpuTime() time.Duration {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
