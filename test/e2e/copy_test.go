package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/test/harness"
)

// bareImage has one program and a directory that every user can write to: no shell, no tar, no
// libraries, no /etc/passwd.
func bareImage(t *testing.T) v1.Image {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skipf("SKIP: no busybox-static: %v", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeReg, Name: "sleep", Mode: 0o755, Size: int64(len(program))},
		{Typeflag: tar.TypeDir, Name: "data/", Mode: 0o1777},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(program); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.Config(img, v1.Config{Entrypoint: []string{"/sleep", "1000"}}); err != nil {
		t.Fatal(err)
	}
	return img
}

// kuri cp needs no program of the image. It copies files into and out of a container whatever its user,
// capabilities, seccomp filter, limits and namespaces are, and the files belong to the container's own ids.
func TestCopyWithoutTar(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.Pull(t, d.Registry.Push(t, "bare:1", bareImage(t)))
	config := harness.HostNetwork(harness.Pod("bare"))
	pod := d.RunPod(t, config)
	src := t.TempDir()
	if err := os.MkdirAll(filepath.Join(src, "tree/sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("chestnuts "), 3<<20) // more than the memory limit of the container below
	harness.Write(t, src, "tree/big", string(big))
	harness.Write(t, src, "tree/sub/f", "chestnut\n")
	for name, change := range map[string]func(*runtimeapi.LinuxContainerConfig, *runtimeapi.LinuxContainerSecurityContext){
		"ordinary": func(*runtimeapi.LinuxContainerConfig, *runtimeapi.LinuxContainerSecurityContext) {},
		"restricted": func(c *runtimeapi.LinuxContainerConfig, s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 1234}, &runtimeapi.Int64Value{Value: 5678}
			s.NoNewPrivs = true
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
			c.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 24 << 20}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := harness.Container(name, image)
			change(c.Linux, c.Linux.SecurityContext)
			id := d.Run(t, pod, c, config)
			cp := func(args ...string) {
				t.Helper()
				if _, errs, code := d.Kuri(t, append([]string{"cp"}, args...)...); code != 0 || errs != "" {
					t.Fatalf("kuri cp %q: exit code %d: %s", args, code, errs)
				}
			}
			cp(filepath.Join(src, "tree"), id+":/data")
			back := t.TempDir()
			cp(id+":/data/tree", back)
			if got, err := os.ReadFile(filepath.Join(back, "tree/big")); err != nil || !bytes.Equal(got, big) {
				t.Errorf("%d bytes came back, %v", len(got), err)
			}
			if got, err := os.ReadFile(filepath.Join(back, "tree/sub/f")); err != nil || string(got) != "chestnut\n" {
				t.Errorf("%q came back, %v", got, err)
			}
			cp(id+":/sleep", filepath.Join(back, "program"))
			if name == "restricted" {
				if _, errs, code := d.Kuri(t, "cp", filepath.Join(src, "tree/sub/f"), id+":/f"); code != 1 ||
					!strings.Contains(errs, "Permission denied") {
					t.Errorf("where its user may not write: exit code %d: %s", code, errs)
				}
			}
			// With --tar, a container without tar is an error.
			if _, errs, code := d.Kuri(t, "cp", "--tar", id+":/data/tree/sub/f", back); code != 1 ||
				!strings.Contains(errs, "tar") {
				t.Errorf("--tar: exit code %d: %s", code, errs)
			}
			d.StopContainer(t, id, 0)
			if _, errs, code := d.Kuri(t, "cp", id+":/data", back); code == 0 || !strings.Contains(errs, "run") {
				t.Errorf("of one that has ended: exit code %d: %s", code, errs)
			}
		})
	}
}

// The service behind kuri cp: clients that make mistakes or disconnect leave nothing behind.
func TestFilesService(t *testing.T) {
	s := newShell(t)
	id := s.run(t, nil, "sh", "-c",
		"mkdir /d; ln -s / /d/root; mkfifo /d/fifo; truncate -s 2G /d/big; echo ready; exec sleep 1000")
	harness.Eventually(t, 20*time.Second, "the files are made", func() error {
		if !strings.Contains(s.LogText(t, id, "stdout"), "ready") {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	files := s.Runtime.Files
	pack := func(ctx context.Context, req *kuriv1.PackRequest) (*tar.Reader, error) {
		stream, err := files.Pack(ctx, req)
		if err != nil {
			return nil, err
		}
		first, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		r, w := io.Pipe()
		go func() {
			_, _ = w.Write(first.Data)
			for {
				chunk, err := stream.Recv()
				if err != nil {
					w.CloseWithError(err)
					return
				}
				if _, err := w.Write(chunk.Data); err != nil {
					return
				}
			}
		}()
		return tar.NewReader(r), nil
	}
	for name, c := range map[string]struct {
		req  *kuriv1.PackRequest
		code codes.Code
	}{
		"no container":  {&kuriv1.PackRequest{ContainerId: "nobody", Directory: "/", Name: "d"}, codes.NotFound},
		"no path":       {&kuriv1.PackRequest{ContainerId: id, Directory: "/", Name: "nosuch"}, codes.NotFound},
		"an empty name": {&kuriv1.PackRequest{ContainerId: id, Directory: "/"}, codes.InvalidArgument},
		"a NUL": {&kuriv1.PackRequest{ContainerId: id, Directory: "/d\x00", Name: "big"},
			codes.InvalidArgument},
		"a file for a directory": {&kuriv1.PackRequest{ContainerId: id, Directory: "/d/big", Name: "x"},
			codes.FailedPrecondition},
	} {
		_, err := pack(t.Context(), c.req)
		harness.WantError(t, err, c.code)
		if t.Failed() {
			t.Fatal(name)
		}
	}
	// A name that is a symlink means the symlink. A directory that is a symlink is resolved inside
	// the container.
	in, err := pack(t.Context(), &kuriv1.PackRequest{ContainerId: id, Directory: "/d", Name: "root"})
	if err != nil {
		t.Fatal(err)
	}
	if h, err := in.Next(); err != nil || h.Typeflag != tar.TypeSymlink || h.Linkname != "/" {
		t.Errorf("%+v, %v", h, err)
	}
	if in, err = pack(t.Context(), &kuriv1.PackRequest{ContainerId: id, Directory: "/d/root/d/root/d",
		Name: "fifo"}); err != nil {
		t.Fatal(err)
	}
	if h, err := in.Next(); err != nil || h.Typeflag != tar.TypeFifo {
		t.Errorf("%+v, %v", h, err)
	}
	if is, err := files.IsDirectory(t.Context(),
		&kuriv1.IsDirectoryRequest{ContainerId: id, Path: "/d/root"}); err != nil || !is.Directory {
		t.Errorf("%v, %v", is, err)
	}
	// No path leads to the node's files: process 1 in /proc is the container's.
	if is, err := files.IsDirectory(t.Context(), &kuriv1.IsDirectoryRequest{ContainerId: id, Path: "/proc/1/root" +
		s.State}); err != nil || is.Directory {
		t.Errorf("%v, %v", is, err)
	}

	// Files that cannot be created are reported after all others are created.
	var part bytes.Buffer
	pw := tar.NewWriter(&part)
	for _, name := range []string{"d", "made"} { // the first is a directory that is not empty
		if err := pw.WriteHeader(&tar.Header{Format: tar.FormatGNU, Typeflag: tar.TypeReg, Name: name,
			Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
	}
	if err := pw.Close(); err != nil {
		t.Fatal(err)
	}
	down, err := files.Unpack(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := down.Send(&kuriv1.UnpackChunk{ContainerId: id, Directory: "/", Data: part.Bytes()}); err != nil {
		t.Fatal(err)
	}
	_, err = down.CloseAndRecv()
	harness.WantError(t, err, codes.Aborted, "d:")
	s.Output(t, id, "test", "-f", "/made")

	// An interrupted kuri cp says so and leaves no partial file behind.
	into := t.TempDir()
	k := startKuri(t, s.Daemon, "cp", id+":/d/big", filepath.Join(into, "big"))
	harness.Eventually(t, 10*time.Second, "it writes", func() error {
		if entries, err := os.ReadDir(into); err != nil || len(entries) == 0 {
			return fmt.Errorf("not yet: %v", err)
		}
		return nil
	})
	_ = k.cmd.Process.Signal(syscall.SIGINT)
	_, code := k.end(t)
	if entries, err := os.ReadDir(into); code != 130 || err != nil || len(entries) > 0 {
		t.Errorf("interrupted: exit code %d: %s: %v, %v", code, k.errs.String(), entries, err)
	}

	// A client that reads a little and disconnects; one that sends half a tar and disconnects.
	ctx, cancel := context.WithCancel(t.Context())
	if in, err = pack(ctx, &kuriv1.PackRequest{ContainerId: id, Directory: "/d", Name: "big"}); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Next(); err != nil {
		t.Error(err)
	}
	up, err := files.Unpack(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Format: tar.FormatGNU, Typeflag: tar.TypeReg, Name: "half",
		Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := up.Send(&kuriv1.UnpackChunk{ContainerId: id, Directory: "/d",
		Data: append(b.Bytes(), make([]byte, 1000)...)}); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, "the copier runs", func() error {
		if !strings.Contains(s.Output(t, id, "ls", "-a", "/d"), ".kuri-cp-") {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	cancel()
	harness.Eventually(t, 20*time.Second, "no process is left", func() error {
		if got := s.Output(t, id, "sh", "-c", "for p in /proc/[0-9]*; do readlink $p/exe; done"); strings.Contains(got,
			"memfd") || strings.Contains(got, "keeper") {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	if _, _, code := s.Exec(t, id, "test", "-e", "/d/half"); code == 0 {
		t.Error("half a file is one")
	}
}
