package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// elsewhere is a shell whose writable layers are on a separate filesystem.
type elsewhere struct {
	*shell
	disk string // the container_root
}

func newElsewhere(t *testing.T) *elsewhere {
	t.Helper()
	disk := t.TempDir()
	if err := unix.Mount("writable", disk, "tmpfs", 0, "mode=0711"); err != nil {
		t.Skipf("SKIP: needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("unmount the container_root: %v", err)
		}
	})
	return &elsewhere{newShell(t, harness.Options{Config: fmt.Sprintf("container_root = %q\n", disk)}), disk}
}

// configured rewrites the configuration of the stopped daemon, with or without container_root.
func (e *elsewhere) configured(t *testing.T, with bool) {
	t.Helper()
	path := filepath.Join(e.Dir, "config.toml")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	config, _, _ := strings.Cut(string(b), "container_root")
	if with {
		config += fmt.Sprintf("container_root = %q\n", e.disk)
	}
	harness.Write(t, e.Dir, "config.toml", config)
}

// layers lists the containers that have a writable layer below container_root.
func (e *elsewhere) layers(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(e.disk, "containers"))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func (e *elsewhere) wantLayers(t *testing.T, when string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := e.layers(t); !slices.Equal(got, want) {
		t.Errorf("%s, these have writable layers: %v, want %v", when, got, want)
	}
}

func (e *elsewhere) remove(t *testing.T, id string) {
	t.Helper()
	if _, err := e.Runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
}

// filesystems returns the mount points that ImageFsInfo reports for images and for writable layers,
// and the bytes used by the latter.
func (e *elsewhere) filesystems(t *testing.T) (images string, writable []string, bytes []uint64) {
	t.Helper()
	resp, err := e.Images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(resp.ImageFilesystems) != 1 {
		t.Fatalf("%v, %v", resp, err)
	}
	for _, f := range resp.ContainerFilesystems {
		writable = append(writable, f.FsId.Mountpoint)
		bytes = append(bytes, f.UsedBytes.GetValue())
	}
	return resp.ImageFilesystems[0].FsId.Mountpoint, writable, bytes
}

func (e *elsewhere) statsAt(t *testing.T, id string) string {
	t.Helper()
	resp, err := e.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Stats.WritableLayer.FsId.Mountpoint
}

// below lists the files with a given name below dir.
func below(t *testing.T, dir, name string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == name {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Writable layers are on a filesystem of their own, which stats and ImageFsInfo name. That survives
// a restart and lasts until the containers are removed.
func TestContainerRoot(t *testing.T) {
	e := newElsewhere(t)
	const size = 4 << 20
	id := e.run(t, nil, "sleep", "1000")
	e.Output(t, id, "sh", "-c", "dd if=/dev/zero of=/written bs=1M count=4 && rm /etc/passwd")
	at := filepath.Join(e.disk, "containers", id, "upper/written")
	if st, err := os.Stat(at); err != nil || st.Size() != size {
		t.Errorf("what the container wrote is not in %s: %v", at, err)
	}
	if found := below(t, e.Root, "written"); len(found) > 0 {
		t.Errorf("what the container wrote is in %v", found)
	}
	if images, writable, bytes := e.filesystems(t); images != e.Root || !slices.Equal(writable, []string{e.disk}) ||
		bytes[0] < size || bytes[0] > size+1<<20 {
		t.Errorf("images in %s, %d bytes of writable layers in %v", images, bytes, writable)
	}
	if at := e.statsAt(t, id); at != e.disk {
		t.Errorf("the stats name %s", at)
	}
	for _, how := range []func(testing.TB){e.Stop, e.Kill9} {
		how(t)
		e.Continue(t)
		e.wantLayers(t, "after a restart", id)
		if said := e.Output(t, id, "sh", "-c",
			"stat -c %s /written; test -e /etc/passwd || echo removed"); said != fmt.Sprintf("%d\nremoved\n", size) {
			t.Errorf("after a restart the container says %q", said)
		}
	}

	other := filepath.Join(e.Dir, "other")
	config := harness.Write(t, e.Dir, "other.toml",
		fmt.Sprintf("root = %q\nstate = %q\nlisten = %q\ncontainer_root = %q\n", other+"/r", other+"/s", other+"/s/kuri.sock",
			e.disk))
	if said, code := harness.RunKurid(t, "--config", config); code == 0 ||
		!strings.Contains(said, e.disk+" belongs to another kurid") {
		t.Errorf("a second kurid with the same container_root exits %d and says %s", code, said)
	}

	e.remove(t, id)
	e.wantLayers(t, "after the removal")
	if _, writable, bytes := e.filesystems(t); !slices.Equal(writable, []string{e.disk}) || bytes[0] != 0 {
		t.Errorf("without containers, %d bytes of writable layers in %v", bytes, writable)
	}
}

// Root in a user namespace owns "/" and can write to it.
func TestContainerRootWithUserNamespace(t *testing.T) {
	e := newElsewhere(t)
	resp, err := e.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.RuntimeHandlers[0].Features.UserNamespaces {
		t.Skip("SKIP: this node cannot run pods with user namespaces")
	}
	e.podConfig = harness.Pod("mapped")
	e.podConfig.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userNamespace()
	e.pod = e.RunPod(t, e.podConfig)
	id := e.run(t, inPod(nil), "sleep", "1000")
	e.Output(t, id, "sh", "-c", "echo mine > /written")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(e.disk, "containers", id, "upper/written"), &st); err != nil || st.Uid != firstID {
		t.Errorf("the file is owned by %d: %v", st.Uid, err)
	}
	e.RemovePod(t, e.pod)
	e.wantLayers(t, "after the removal")
}

// Containers created with a container_root keep running and are removed completely after it is no
// longer configured, and the reverse.
func TestContainerRootIsChanged(t *testing.T) {
	e := newElsewhere(t)
	there := e.run(t, nil, "sh", "-c", "echo there > /written; sleep 1000")
	e.Stop(t)
	e.configured(t, false)
	e.Continue(t)
	here := e.run(t, nil, "sh", "-c", "echo here > /written; sleep 1000")
	harness.Eventually(t, 10*time.Second, "both have written", func() error {
		for id, want := range map[string]string{there: "there\n", here: "here\n"} {
			if said, _, _ := e.Exec(t, id, "cat", "/written"); said != want {
				return fmt.Errorf("%s says %q", id, said)
			}
		}
		return nil
	})
	e.wantLayers(t, "without the key", there)
	if _, writable, _ := e.filesystems(t); !slices.Equal(writable, []string{e.Root, e.disk}) {
		t.Errorf("writable layers are in %v", writable)
	}
	if a, b := e.statsAt(t, there), e.statsAt(t, here); a != e.disk || b != e.Root {
		t.Errorf("the stats name %s and %s", a, b)
	}
	e.StopContainer(t, there, 0)
	e.remove(t, there)
	e.wantLayers(t, "after the removal without the key")

	e.Stop(t)
	e.configured(t, true)
	e.Continue(t)
	if said := e.Output(t, here, "cat", "/written"); said != "here\n" {
		t.Errorf("the container beside its record says %q", said)
	}
	e.StopContainer(t, here, 0)
	e.remove(t, here)
	e.RemovePod(t, e.pod)
}

// kurid is killed while it creates and removes containers. After recovery each container has a writable layer
// and nothing else has one, even if container_root is removed from the configuration before the restart.
func TestContainerRootSurvivesCrashes(t *testing.T) {
	e := newElsewhere(t)
	var victims []string
	for round := range 10 {
		var working sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		for range 6 {
			c := e.config(nil, "sleep", "1000")
			working.Go(func() {
				e.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: e.pod, Config: c,
					SandboxConfig: e.podConfig})
			})
		}
		for _, id := range victims {
			working.Go(func() {
				e.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			})
		}
		time.Sleep(time.Duration(round*25) * time.Millisecond)
		e.Kill9(t)
		working.Wait()
		cancel()
		e.configured(t, round%2 == 0)
		e.Continue(t)

		list, err := e.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		victims = nil
		for _, c := range list.Containers {
			victims = append(victims, c.Id)
		}
		// kurid serves before
		harness.Eventually(t, 10*time.Second, "the layers of those that are gone are gone", func() error {
			for _, id := range e.layers(t) {
				if !slices.Contains(victims, id) {
					return fmt.Errorf("round %d: container %s is gone, its writable layer is not", round, id)
				}
			}
			return nil
		})
		t.Logf("round %d: %d containers, %d layers there", round, len(victims), len(e.layers(t)))
	}
	e.RemovePod(t, e.pod)
	e.wantLayers(t, "after the pod was removed")
}
