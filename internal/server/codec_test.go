package server

import (
	"bytes"
	"path/filepath"
	"runtime/metrics"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/pod"
)

// allocated is what the process has allocated since its start, in bytes.
func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// costly are requests that are small on the wire and large in memory, of about size bytes as decodedSize has it.
func costly(size int) map[string]proto.Message {
	labels := make(map[string]string)
	for i := range size / mapCost {
		labels[string(rune(0x10000+i%0x100000))] = ""
	}
	return map[string]proto.Message{
		"empty mounts": &runtime.CreateContainerRequest{Config: &runtime.ContainerConfig{Mounts: slicesOf(size/(entryCost+messageCost), &runtime.Mount{})}},
		"empty args": &runtime.CreateContainerRequest{Config: &runtime.ContainerConfig{Args: make([]string,
			size/entryCost)}},
		"labels": &runtime.CreateContainerRequest{Config: &runtime.ContainerConfig{Labels: labels}},
		"groups": &runtime.CreateContainerRequest{Config: &runtime.ContainerConfig{Linux: &runtime.LinuxContainerConfig{
			SecurityContext: &runtime.LinuxContainerSecurityContext{SupplementalGroups: make([]int64, size/8)}}}},
	}
}

func slicesOf[T any](n int, v T) []T {
	out := make([]T, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func TestWhatARequestTakesIsEstimatedFromAbove(t *testing.T) {
	for name, msg := range costly(16 << 20) {
		data, err := proto.Marshal(msg)
		if err != nil {
			t.Fatal(err)
		}
		said, err := decodedSize(data, msg.ProtoReflect().Descriptor(), 1<<40)
		if err != nil {
			t.Fatal(err)
		}
		before := allocated()
		if err := proto.Unmarshal(data, &runtime.CreateContainerRequest{}); err != nil {
			t.Fatal(err)
		}
		// Lists are copied as they grow by a quarter: what is allocated is up to five times what stays.
		if took := allocated() - before; said < int(took)/5 || said > 20*int(took) {
			t.Errorf("%s: %d bytes are said of %d on the wire, %d were allocated", name, said, len(data), took)
		}
	}
}

func TestRequestsThatTakeTooMuchAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kuri.sock")
	serve(t, Options{Listen: path, Version: "9.9"})
	conn := dial(t, path)
	rt := runtime.NewRuntimeServiceClient(conn)
	msgs := costly(maxDecoded + maxDecoded/8)
	msgs["60 MiB"] = &runtime.CreateContainerRequest{PodSandboxId: strings.Repeat("x", 60<<20)}
	for name, msg := range msgs {
		before := allocated()
		_, err := rt.CreateContainer(t.Context(), msg.(*runtime.CreateContainerRequest))
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%s: %v", name, err)
		}
		// The client in this process encodes it, too.
		if took := allocated() - before; took > 200<<20 {
			t.Errorf("%s: cost %d MiB", name, took>>20)
		}
	}
	if _, err := rt.Version(t.Context(), &runtime.VersionRequest{}); err != nil {
		t.Error(err)
	}
}

func TestLargeRequestsShareOneMemory(t *testing.T) {
	c := newCodec()
	data, err := proto.Marshal(&runtime.CreateContainerRequest{PodSandboxId: strings.Repeat("x", 10<<20)})
	if err != nil {
		t.Fatal(err)
	}
	decode := func() (*runtime.CreateContainerRequest, error) {
		req := &runtime.CreateContainerRequest{}
		if err := c.Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, req); err != nil {
			t.Fatal(err)
		}
		return req, c.refusal(req)
	}
	var held []any
	for {
		req, err := decode()
		if err != nil {
			break
		}
		if held = append(held, req); len(held) > allDecoded/(10<<20) {
			t.Fatal("there is no end to it")
		}
	}
	c.release(held[0])
	if _, err := decode(); err != nil {
		t.Errorf("when one has been answered: %v", err)
	}
	for _, h := range held[1:] {
		c.release(h)
	}
	if len(c.held) != 1 || len(c.refused) != 0 {
		t.Errorf("held: %d, refused: %d", len(c.held), len(c.refused))
	}
}

func TestAnExecAnswerIsWhatTheCRISays(t *testing.T) {
	piece := func(s string) *pod.Piece { return &pod.Piece{Bytes: []byte(s)} }
	long := strings.Repeat("0123456789", 100) // below the size that the transport gives back
	for _, test := range []struct {
		answer *execAnswer
		want   *runtime.ExecSyncResponse
	}{
		{&execAnswer{}, &runtime.ExecSyncResponse{}},
		{&execAnswer{Code: 137}, &runtime.ExecSyncResponse{ExitCode: 137}},
		{&execAnswer{Code: -1}, &runtime.ExecSyncResponse{ExitCode: -1}},
		{&execAnswer{Stdout: []*pod.Piece{piece("a"), piece("b\n")}, Stderr: []*pod.Piece{piece(long)}, Code: 1},
			&runtime.ExecSyncResponse{Stdout: []byte("ab\n"), Stderr: []byte(long), ExitCode: 1}},
	} {
		var wire bytes.Buffer
		for _, b := range test.answer.encode() {
			wire.Write(b.ReadOnlyData())
		}
		got := &runtime.ExecSyncResponse{}
		if err := proto.Unmarshal(wire.Bytes(), got); err != nil || !proto.Equal(got, test.want) {
			t.Errorf("%v, want %v: %v", got, test.want, err)
		}
	}
	// The numbers are the CRI's.
	fields := (&runtime.ExecSyncResponse{}).ProtoReflect().Descriptor().Fields()
	for name, number := range map[protoreflect.Name]protoreflect.FieldNumber{"stdout": 1, "stderr": 2, "exit_code": 3} {
		if fields.ByName(name).Number() != number {
			t.Errorf("%s has another number", name)
		}
	}
}
