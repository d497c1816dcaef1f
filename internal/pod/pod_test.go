package pod

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/record"
)

func testSandbox(t *testing.T, state State) *Sandbox {
	t.Helper()
	p := paths{root: t.TempDir(), state: t.TempDir()}
	r := &SandboxRecord{ID: newID(), State: state, Config: message[*runtime.PodSandboxConfig]{&runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "web", Namespace: "shop", Uid: "u1"},
	}}}
	if err := os.MkdirAll(p.podDir(r.ID), 0o700); err != nil {
		t.Fatal(err)
	}
	v := newView()
	s := &Sandbox{paths: p, view: &v, containers: map[string]*Container{}}
	s.rec.Store(r)
	return s
}

func TestASandboxTakesOnlyTheEdgesThatAreDrawn(t *testing.T) {
	all := []State{Creating, Ready, NotReady}
	ok := map[[2]State]bool{{Creating, Ready}: true, {Creating, NotReady}: true, {Ready, NotReady}: true}
	for _, from := range all {
		for _, to := range all {
			s := testSandbox(t, from)
			err := s.become(to, nil)
			if want := from == to || ok[[2]State{from, to}]; (err == nil) != want {
				t.Errorf("%s -> %s: %v", from, to, err)
			}
			if err != nil && (!errors.Is(err, fault.Precondition) || s.Record().State != from) {
				t.Errorf("%s -> %s: %v, now %s", from, to, err, s.Record().State)
			}
		}
	}
}

func TestATransitionThatCannotBeRecordedDoesNotHappen(t *testing.T) {
	s := testSandbox(t, Creating)
	if err := os.RemoveAll(s.paths.root); err != nil {
		t.Fatal(err)
	}
	if err := s.become(Ready, nil); err == nil || s.Record().State != Creating {
		t.Fatalf("err %v, state %s", err, s.Record().State)
	}
}

// Pods and containers can be ended even on a full disk.
func TestAnEndThatCannotBeRecordedHappens(t *testing.T) {
	s := testSandbox(t, Ready)
	c := newContainer(s.paths, s, &ContainerRecord{ID: newID(), SandboxID: s.Record().ID, State: Running,
		Config: message[*runtime.ContainerConfig]{&runtime.ContainerConfig{}}})
	if err := os.RemoveAll(s.paths.root); err != nil {
		t.Fatal(err)
	}
	if err := s.become(NotReady, nil); err == nil || s.Record().State != NotReady {
		t.Errorf("err %v, state %s", err, s.Record().State)
	}
	if err := c.become(Exited, func(r *ContainerRecord) { r.ExitCode = 3 }); err == nil || c.Record().State != Exited ||
		c.Record().ExitCode != 3 {
		t.Errorf("err %v, state %s", err, c.Record().State)
	}
	<-c.exited
	// A repeated end, perhaps during the removal, writes nothing.
	if err := errors.Join(s.become(NotReady, nil), c.become(Exited, nil)); err != nil {
		t.Error(err)
	}
	if err := c.amend(func(*ContainerRecord) {}); !errors.Is(err, fault.Precondition) {
		t.Errorf("changed after its end: %v", err)
	}
}

func TestAContainerExitsOnce(t *testing.T) {
	s := testSandbox(t, Ready)
	c := newContainer(s.paths, s, &ContainerRecord{ID: newID(), SandboxID: s.Record().ID, State: Running,
		Config: message[*runtime.ContainerConfig]{&runtime.ContainerConfig{}}})
	if err := os.MkdirAll(s.paths.containerDir(s.Record().ID, c.Record().ID), 0o700); err != nil {
		t.Fatal(err)
	}
	before := c.Record()
	for _, code := range []int32{3, 4} { // reported twice: by the event and by a comparison
		if err := c.become(Exited, func(r *ContainerRecord) { r.ExitCode = code }); err != nil {
			t.Fatal(err)
		}
	}
	<-c.exited
	if before.State != Running {
		t.Error("a record that was handed out has changed")
	}
	if err := c.become(Running, nil); !errors.Is(err, fault.Precondition) {
		t.Errorf("back to life: %v", err)
	}
}

func TestRecordsSurviveWithEveryByte(t *testing.T) {
	cfg := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "c", Attempt: 2},
		Envs:     []*runtime.KeyValue{{Key: "BIN", Value: []byte{0xff, 0xfe, 'x'}}},
		Labels:   map[string]string{"a/b": "c"},
	}
	path := filepath.Join(t.TempDir(), "container.json")
	if err := record.Write(path, containerFormat, &ContainerRecord{ID: "x", Config: message[*runtime.ContainerConfig]{cfg},
		StopSignal: 15}); err != nil {
		t.Fatal(err)
	}
	var got ContainerRecord
	if err := record.Read(path, containerFormat, &got); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got.config(), cfg) || got.StopSignal != 15 {
		t.Fatalf("%+v", got)
	}
	// A newer version of Kuri may have written a CRI field that this version does not know.
	var m message[*runtime.ContainerConfig]
	if err := json.Unmarshal([]byte(`{"tty": true, "hologram": {"depth": 3}}`), &m); err != nil || !m.msg.Tty {
		t.Fatalf("%v, %v", m.msg, err)
	}
}

func TestFindTakesUnambiguousBeginnings(t *testing.T) {
	m := map[string]int{"abcd11": 1, "abcd22": 2, "ffff": 3}
	for id, want := range map[string]int{"abcd11": 1, "abcd2": 2, "ffff": 3} {
		if got, err := find(m, "pod", id); err != nil || got != want {
			t.Errorf("%s: %d, %v", id, got, err)
		}
	}
	for id, kind := range map[string]fault.Kind{"abcd": fault.Invalid, "0000": fault.NotFound, "ff": fault.NotFound,
		"": fault.NotFound} {
		if _, err := find(m, "pod", id); !errors.Is(err, kind) {
			t.Errorf("%q: %v, want %s", id, err, kind)
		}
	}
}

func TestPortMappings(t *testing.T) {
	got, err := portMappings(&runtime.PodSandboxConfig{PortMappings: []*runtime.PortMapping{
		{ContainerPort: 80},
		{ContainerPort: 53, HostPort: 5353, Protocol: runtime.Protocol_UDP, HostIp: "::1"},
	}})
	if err != nil || len(got) != 1 || got[0].String() != "[::1]:5353/udp" || got[0].ContainerPort != 53 {
		t.Fatalf("%v, %v", got, err)
	}
	for _, bad := range []*runtime.PortMapping{
		{HostPort: 80},
		{ContainerPort: 80, HostPort: 70000},
		{ContainerPort: -1, HostPort: 80},
		{ContainerPort: 80, HostPort: 80, HostIp: "localhost"},
	} {
		if _, err := portMappings(&runtime.PodSandboxConfig{PortMappings: []*runtime.PortMapping{bad}}); !errors.Is(err,
			fault.Invalid) || !strings.Contains(err.Error(), "port_mappings[0]") {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestRate(t *testing.T) {
	var r rate
	at := time.Unix(100, 0)
	if _, ok := r.next(at, 1e9); ok {
		t.Error("a rate from one reading")
	}
	if got, ok := r.next(at.Add(2*time.Second), 2e9); !ok || got != 5e8 {
		t.Errorf("%d, %v", got, ok)
	}
	if got, ok := r.next(at.Add(2*time.Second+time.Millisecond), 9e9); !ok || got != 5e8 {
		t.Errorf("too soon: %d, %v", got, ok)
	}
	if got, ok := r.next(at.Add(time.Second), 15e8); !ok || got != 5e8 {
		t.Errorf("an older reading: %d, %v", got, ok)
	}
	if _, ok := r.next(at.Add(5*time.Second), 1); ok {
		t.Error("a counter that went back")
	}
}
