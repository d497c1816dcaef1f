package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// TestVerbsAtOnce sends requests of every kind for one pod concurrently, each twice, while its container
// exits by itself. Stops and removals always succeed, lists succeed, and the others succeed or are refused
// because the pod or the container is gone. KURI_RACE_SECONDS is the duration (default 5). KURI_RACE_SEED
// repeats the requests and their times, but not the order in which they meet.
func TestVerbsAtOnce(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	ref := d.PullBusybox(t)
	seed := setting(t, "KURI_RACE_SEED", uint64(time.Now().UnixNano()))
	end := time.Now().Add(time.Duration(setting(t, "KURI_RACE_SECONDS", 5)) * time.Second)
	t.Logf("KURI_RACE_SEED=%d", seed)
	var clients sync.WaitGroup
	for i := range 3 {
		c := &hastyClient{Daemon: d, t: t, image: ref, rand: rand.New(rand.NewPCG(seed, uint64(i)))}
		clients.Go(func() {
			for n := 0; time.Now().Before(end) && !t.Failed(); n++ {
				c.onePod(fmt.Sprintf("hasty%d-%d", i, n))
			}
		})
	}
	clients.Wait()
}

// TestImagesAtOnce concurrently pulls and removes two images that share a layer, and creates
// containers from them. A pull always succeeds with the image, a removal succeeds, and a container
// is created or its image is missing. In the end no data without an image is left.
func TestImagesAtOnce(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	seed := setting(t, "KURI_RACE_SEED", uint64(time.Now().UnixNano()))
	end := time.Now().Add(time.Duration(setting(t, "KURI_RACE_SECONDS", 5)) * time.Second)
	t.Logf("KURI_RACE_SEED=%d", seed)
	shared, err := image.Layer(image.File{Path: "/shared", Data: make([]byte, 1<<20)})
	if err != nil {
		t.Fatal(err)
	}
	var refs []string
	for _, name := range []string{"one", "two"} {
		own, err := image.Layer(image.File{Path: "/" + name, Data: []byte(name)})
		if err != nil {
			t.Fatal(err)
		}
		img, err := image.WithLayers(v1.Config{Cmd: []string{"/none"}}, shared, own)
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, d.Registry.Push(t, name+":1", img))
	}
	pod := harness.HostNetwork(harness.Pod("images"))
	box := d.RunPod(t, pod)
	c := &hastyClient{Daemon: d, t: t, rand: rand.New(rand.NewPCG(seed, 0))}
	for n := 0; time.Now().Before(end) && !t.Failed(); n++ {
		var all []request
		for i, ref := range refs {
			spec := &runtimeapi.ImageSpec{Image: ref}
			all = append(all, request{"PullImage", succeeds, func(ctx context.Context) error {
				_, err := d.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec})
				return err
			}}, request{"RemoveImage", succeeds, func(ctx context.Context) error {
				_, err := d.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: spec})
				return err
			}}, request{"ListImages", succeeds, func(ctx context.Context) error {
				_, err := d.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
				return err
			}}, request{"CreateContainer", []codes.Code{codes.OK, codes.NotFound, codes.InvalidArgument},
				func(ctx context.Context) error {
					// Its program is missing, so the container only holds the layers, for a while.
					config := harness.Container(fmt.Sprint("c", n, i), ref)
					_, err := d.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: config,
						SandboxConfig: pod})
					return err
				}})
		}
		c.atOnce(60*time.Millisecond, all...)
	}
	d.RemovePod(t, box)
	for _, ref := range refs {
		if _, err := d.Images.RemoveImage(t.Context(),
			&runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
			t.Error(err)
		}
	}
	harness.Eventually(t, 10*time.Second, "the layers are gone", func() error {
		left, err := filepath.Glob(filepath.Join(d.Dir, "root", "layers", "*"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left: %v", left)
		}
		return err
	})
}

type hastyClient struct {
	*harness.Daemon
	t     *testing.T
	image string
	rand  *rand.Rand
}

// The permitted codes of a response.
var (
	succeeds     = []codes.Code{codes.OK}
	orIsGone     = []codes.Code{codes.OK, codes.NotFound, codes.FailedPrecondition}
	orIsNotReady = []codes.Code{codes.OK, codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists}
)

func (c *hastyClient) onePod(name string) {
	pod := harness.Pod(name)
	if c.rand.IntN(2) == 0 {
		harness.HostNetwork(pod)
	}
	pod.LogDirectory = filepath.Join(c.Dir, "logs", name)
	var mu sync.Mutex
	ids := make(map[string]bool)
	add := func(id string) {
		mu.Lock()
		defer mu.Unlock()
		if id != "" {
			ids[id] = true
		}
	}

	// 1. One pod and one container in it, each created by two clients.
	c.atOnce(0, request{"RunPodSandbox", succeeds, func(ctx context.Context) error {
		resp, err := c.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
		add(resp.GetPodSandboxId())
		return err
	}})
	box := only(c.t, "pods", ids)
	commands := [][]string{{"sleep", "1000"}, {"true"}, {"sleep", "0.02"}, {"sleep", "0.05"}, {"sleep", "0.1"}}
	config := harness.Container("c", c.image, commands[c.rand.IntN(len(commands))]...)
	config.LogPath = "c.log"
	clear(ids)
	c.atOnce(0, request{"CreateContainer", succeeds, func(ctx context.Context) error {
		resp, err := c.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: config,
			SandboxConfig: pod})
		add(resp.GetContainerId())
		return err
	}})
	id := only(c.t, "containers", ids)
	if box == "" || id == "" {
		return
	}

	// 2. All other requests.
	all := append(c.uses(box, id), c.ends(box, id)...)
	start := request{"StartContainer", orIsGone, func(ctx context.Context) error {
		_, err := c.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	}}
	late := request{"CreateContainer of another", orIsNotReady, func(ctx context.Context) error {
		other := harness.Container("d", c.image, "true")
		_, err := c.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: other,
			SandboxConfig: pod})
		return err
	}}
	if c.rand.IntN(4) > 0 { // or start it concurrently with the others
		c.atOnce(0, start)
	} else {
		all = append(all, start)
	}
	c.atOnce(80*time.Millisecond, append(all, late)...)

	// 3. Nothing is left.
	c.atOnce(0, request{"RemovePodSandbox", succeeds, func(ctx context.Context) error {
		_, err := c.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: box})
		return err
	}})
	if _, err := c.Runtime.PodSandboxStatus(c.t.Context(),
		&runtimeapi.PodSandboxStatusRequest{PodSandboxId: box}); status.Code(err) != codes.NotFound {
		c.t.Errorf("the pod is there after its removal: %v", err)
	}
}

// uses returns requests that change little or nothing.
func (c *hastyClient) uses(box, id string) []request {
	return []request{
		{"ExecSync", orIsGone, func(ctx context.Context) error {
			_, err := c.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 10})
			return err
		}},
		{"ReopenContainerLog", orIsGone, func(ctx context.Context) error {
			_, err := c.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
			return err
		}},
		{"UpdateContainerResources", orIsGone, func(ctx context.Context) error {
			_, err := c.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{
				ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100},
			})
			return err
		}},
		{"UpdatePodSandboxResources", orIsGone, func(ctx context.Context) error {
			_, err := c.Runtime.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{
				PodSandboxId: box, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 100},
			})
			return err
		}},
		{"ContainerStats", orIsGone, func(ctx context.Context) error {
			_, err := c.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
			return err
		}},
		{"PodSandboxStats", orIsGone, func(ctx context.Context) error {
			_, err := c.Runtime.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: box})
			return err
		}},
		{"PodSandboxStatus", orIsGone, func(ctx context.Context) error {
			_, err := c.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: box, Verbose: true})
			return err
		}},
		{"ListContainerStats", succeeds, func(ctx context.Context) error {
			_, err := c.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return err
		}},
		{"ListPodSandboxStats", succeeds, func(ctx context.Context) error {
			_, err := c.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		}},
		{"ImageFsInfo", succeeds, func(ctx context.Context) error {
			_, err := c.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
			return err
		}},
	}
}

// ends returns some of the requests that stop or remove.
func (c *hastyClient) ends(box, id string) []request {
	stop := func(grace int64) request {
		return request{fmt.Sprintf("StopContainer within %d s", grace), succeeds, func(ctx context.Context) error {
			_, err := c.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: grace})
			return err
		}}
	}
	all := []request{
		stop(0), stop(1), stop(2),
		{"RemoveContainer", succeeds, func(ctx context.Context) error {
			_, err := c.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		}},
		{"StopPodSandbox", succeeds, func(ctx context.Context) error {
			_, err := c.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: box})
			return err
		}},
		{"RemovePodSandbox", succeeds, func(ctx context.Context) error {
			_, err := c.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: box})
			return err
		}},
	}
	c.rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all[:1+c.rand.IntN(len(all))]
}

type request struct {
	name    string
	answers []codes.Code
	ask     func(context.Context) error
}

// atOnce sends each request twice, at random times within span, and waits for the responses.
func (c *hastyClient) atOnce(span time.Duration, all ...request) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 2*slow)
	defer cancel()
	var callers sync.WaitGroup
	for _, r := range append(all, all...) {
		delay := time.Duration(c.rand.Int64N(int64(span) + 1))
		callers.Go(func() {
			time.Sleep(delay)
			start := time.Now()
			err := r.ask(ctx)
			for _, code := range r.answers {
				if status.Code(err) == code && time.Since(start) < slow {
					return
				}
			}
			c.t.Errorf("%s after %s took %s: %v", r.name, delay, time.Since(start), err)
		})
	}
	callers.Wait()
}

// only returns the one id with which all requests were answered.
func only(t *testing.T, what string, ids map[string]bool) (id string) {
	if len(ids) != 1 {
		t.Errorf("%d %s were made, not 1", len(ids), what)
	}
	for id = range ids {
	}
	return id
}
