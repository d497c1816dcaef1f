package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// Odd values for fields of any request.
var (
	oddStrings = []string{
		"", "/", "..", "../../x", ".", "//", "/a/../../b", "/nosuch/x/y", "/dev/null", "/dev/nosuch", "/etc/passwd",
		"/proc/self/exe", "é", "a b", "=", "A=B", "eth0\n", "%s%n", "a\x00b",
		strings.Repeat("x", 5000), "-1", "0", "99999999999999999999", "rw", "rwm", "localhost/x", "runtime/default",
		"unconfined", "ALL", "NET_ADMIN", "SIGKILL", "u:r:t:s0",
		"sha256:", "busybox@sha256:zz", "1.2.3.4", "::1", "fe80::1%eth0", "kernel.shm_rmid_forced", "net.ipv4.ip_forward",
		"memory.high", "max", "2MB", "0-99", "1,,2",
		"io.kubernetes.cri.blockio-class", "io.kubernetes.cri.rdt-class", "cdi.k8s.io/x", "vendor.com/dev=0",
	}
	oddNumbers = []int64{0, 1, -1, 2, 9, 15, 64, 65, 1000, -1000, 1001, 4096, 65535, 65536, 1 << 20, 1<<31 - 1, 1 << 31,
		-1 << 31, 1<<63 - 1, -1 << 63}
)

// TestAnyRequestIsAnswered sends requests for pods, containers, updates, execs and images with random changes
// to any field. Each request succeeds in time, or fails with a code that names whose mistake it is, and
// everything created can be removed. KURI_ANYTHING_SECONDS is the duration (default 5). KURI_ANYTHING_SEED
// repeats the requests, but not the order of its concurrent clients.
func TestAnyRequestIsAnswered(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.PullBusybox(t)
	seed, seconds := setting(t, "KURI_ANYTHING_SEED", uint64(time.Now().UnixNano())), setting(t,
		"KURI_ANYTHING_SECONDS", 5)
	t.Logf("KURI_ANYTHING_SEED=%d", seed)
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	var clients sync.WaitGroup
	for n := range uint64(3) {
		c := &oddClient{Daemon: d, t: t, image: ref, volume: t.TempDir(), rand: rand.New(rand.NewPCG(seed, n)),
			name: fmt.Sprint("client", n)}
		clients.Go(func() {
			for i := 0; time.Now().Before(end); i++ {
				c.onePod(i)
			}
		})
	}
	small, err := image.New(v1.Config{}, image.File{Path: "/a", Data: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	c := &oddClient{Daemon: d, t: t, image: d.Registry.Push(t, "odd:1", small), rand: rand.New(rand.NewPCG(seed, 3))}
	clients.Go(func() {
		for time.Now().Before(end) {
			c.oneImage()
		}
	})
	clients.Wait()
}

func setting(t *testing.T, name string, otherwise uint64) uint64 {
	given := os.Getenv(name)
	if given == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(given, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

type oddClient struct {
	*harness.Daemon
	t             *testing.T
	image, volume string
	rand          *rand.Rand
	name          string
}

// onePod creates a pod with some containers, sends various requests for them, and removes the pod.
func (c *oddClient) onePod(n int) {
	pod := harness.Pod(fmt.Sprint(c.name, "-", n))
	if c.rand.IntN(2) == 0 {
		harness.HostNetwork(pod)
	}
	changes := c.change(pod, 4)
	pod.LogDirectory = filepath.Join(c.Dir, "logs", c.name)
	if pod.GetLinux() != nil {
		pod.Linux.CgroupParent = "" // a client that names a cgroup parent, as a kubelet does, removes it itself
	}
	var id string
	if !c.ask("RunPodSandbox", changes, pod, func(ctx context.Context) error {
		resp, err := c.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
		id = resp.GetPodSandboxId()
		return err
	}) {
		return
	}
	for i := range 3 {
		c.oneContainer(id, pod, fmt.Sprint("c", i))
	}
	resources := &runtimeapi.UpdatePodSandboxResourcesRequest{}
	changes = c.change(resources, 2)
	resources.PodSandboxId = id
	c.ask("UpdatePodSandboxResources", changes, resources, func(ctx context.Context) error {
		_, err := c.Runtime.UpdatePodSandboxResources(ctx, resources)
		return err
	})
	c.ask("PodSandboxStatus", "", pod, func(ctx context.Context) error {
		_, err := c.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
		return err
	})
	c.ask("ListPodSandboxStats", "", pod, func(ctx context.Context) error {
		_, err := c.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
		return err
	})
	stopped := c.ask("StopPodSandbox", "", pod, func(ctx context.Context) error {
		_, err := c.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		return err
	})
	removed := c.ask("RemovePodSandbox", "", pod, func(ctx context.Context) error {
		_, err := c.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		return err
	})
	if !stopped || !removed {
		c.t.Errorf("the pod cannot be removed: %s", protojson.Format(pod))
	}
}

func (c *oddClient) oneContainer(pod string, podConfig *runtimeapi.PodSandboxConfig, name string) {
	config := harness.Container(name, c.image, "sleep", "1000")
	if own := podConfig.GetLinux().GetSecurityContext().GetNamespaceOptions(); own != nil {
		config.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: proto.CloneOf(own)}}
	}
	log := config.LogPath
	changes := c.change(config, 3)
	config.LogPath = log
	for _, m := range config.Mounts { // keep the machine's own directories out of the container
		if _, err := os.Stat(m.HostPath); err == nil {
			m.HostPath = c.volume
		}
	}
	var id string
	if !c.ask("CreateContainer", changes, config, func(ctx context.Context) error {
		resp, err := c.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config,
			SandboxConfig: podConfig})
		id = resp.GetContainerId()
		return err
	}) {
		return
	}
	c.ask("StartContainer", changes, config, func(ctx context.Context) error {
		_, err := c.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	})
	for range 2 {
		update := &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{}}
		c.ask("UpdateContainerResources", c.change(update.Linux, 3), update, func(ctx context.Context) error {
			_, err := c.Runtime.UpdateContainerResources(ctx, update)
			return err
		})
		exec := &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}
		changes := c.change(exec, 1)
		exec.Timeout = 2
		c.ask("ExecSync", changes, exec, func(ctx context.Context) error {
			_, err := c.Runtime.ExecSync(ctx, exec)
			return err
		})
	}
	stream := &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true}
	c.ask("Exec", c.change(stream, 2), stream, func(ctx context.Context) error {
		_, err := c.Runtime.Exec(ctx, stream)
		return err
	})
	c.ask("ContainerStatus", "", config, func(ctx context.Context) error {
		_, err := c.Runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
		return err
	})
}

// oneImage pulls an image, asks for its status and removes it, by its name or by an odd one.
func (c *oddClient) oneImage() {
	pull := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: c.image}, Auth: &runtimeapi.AuthConfig{}}
	changes := c.change(pull.Image, 1) + c.change(pull.Auth, 2)
	c.ask("PullImage", changes, pull, func(ctx context.Context) error {
		_, err := c.Images.PullImage(ctx, pull)
		return err
	})
	status := &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: c.image}, Verbose: true}
	c.ask("ImageStatus", c.change(status.Image, 1), status, func(ctx context.Context) error {
		_, err := c.Images.ImageStatus(ctx, status)
		return err
	})
	list := &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{}}
	c.ask("ListImages", c.change(list.Filter, 2), list, func(ctx context.Context) error {
		_, err := c.Images.ListImages(ctx, list)
		return err
	})
	remove := &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: c.image}}
	c.ask("RemoveImage", c.change(remove.Image, 1), remove, func(ctx context.Context) error {
		_, err := c.Images.RemoveImage(ctx, remove)
		return err
	})
}

// slow is more than any request of this test may take on a busy machine.
const slow = 15 * time.Second

// ask reports whether a request succeeded, and fails the test if the error of a refusal is not acceptable.
func (c *oddClient) ask(what, changes string, req proto.Message, do func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*slow)
	defer cancel()
	start := time.Now()
	err := do(ctx)
	took := time.Since(start)
	switch code := status.Code(err); {
	case strings.Contains(status.Convert(err).Message(), "RegistryUnavailable: "): // with Unknown, for the kubelet
	case code == codes.Internal, code == codes.Unknown, code == codes.Unavailable, code == codes.DataLoss, took > slow:
		c.t.Errorf("%s took %v: %v\nchanged: %s\n%s", what, took, err, changes, protojson.MarshalOptions{}.Format(req))
	case err != nil && status.Convert(err).Message() == "":
		c.t.Errorf("%s: %v without a word", what, code)
	}
	return err == nil
}

// change sets up to most fields of a message to odd values and returns a description of the changes.
func (c *oddClient) change(m proto.Message, most int) string {
	var said []string
	for range c.rand.IntN(most + 1) {
		said = append(said, c.set(m.ProtoReflect()))
	}
	return strings.Join(said, ", ")
}

// set changes one field of a message or of a nested message and describes the change.
func (c *oddClient) set(m protoreflect.Message) string {
	fields := m.Descriptor().Fields()
	if fields.Len() == 0 {
		return ""
	}
	f := fields.Get(c.rand.IntN(fields.Len()))
	name := string(f.Name())
	switch {
	case c.rand.IntN(12) == 0:
		m.Clear(f)
		return name + " cleared"
	case f.IsMap():
		key, value := c.odd(f.MapKey()), c.odd(f.MapValue())
		m.Mutable(f).Map().Set(key.MapKey(), value)
		return fmt.Sprintf("%s[%.40q]=%.40q", name, key, value)
	case f.IsList() && f.Kind() == protoreflect.MessageKind:
		list := m.Mutable(f).List()
		if list.Len() == 0 || c.rand.IntN(2) == 0 {
			list.AppendMutable()
		}
		element := list.Get(list.Len() - 1).Message()
		return name + "[]." + c.set(element) + "." + c.set(element)
	case f.IsList():
		value := c.odd(f)
		m.Mutable(f).List().Append(value)
		return fmt.Sprintf("%s+=%.40q", name, value)
	case f.Kind() == protoreflect.MessageKind:
		return name + "." + c.set(m.Mutable(f).Message())
	}
	value := c.odd(f)
	m.Set(f, value)
	return fmt.Sprintf("%s=%.40q", name, value)
}

// odd returns an odd value for a field that is not a message.
func (c *oddClient) odd(f protoreflect.FieldDescriptor) protoreflect.Value {
	n := oddNumbers[c.rand.IntN(len(oddNumbers))]
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n > 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(c.rand.IntN(8) - 1))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(oddStrings[c.rand.IntN(len(oddStrings))]))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(oddStrings[c.rand.IntN(len(oddStrings))])
	}
	panic("the CRI has got fields of kind " + f.Kind().String())
}
