package pod

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/record"
)

// A record with a configuration that was encoded before is read like any other. The encoding is dropped once it is no
// longer of use.
func TestConfigIsEncodedOnce(t *testing.T) {
	p := paths{t.TempDir(), t.TempDir()}
	pod := &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: "p", Uid: "u"},
		Labels: map[string]string{"a": "<&>"}}
	config := &runtime.ContainerConfig{Metadata: &runtime.ContainerMetadata{Name: "c"},
		Envs: []*runtime.KeyValue{{Key: "K", Value: []byte{0xff}}}}
	v := newView()
	s := &Sandbox{paths: p, view: &v, containers: make(map[string]*Container)}
	sr := &SandboxRecord{ID: newID(), State: Creating, Config: message[*runtime.PodSandboxConfig]{pod}, BootID: "b"}
	sr.configJSON = encodeConfig(sr.Config)
	s.rec.Store(sr)
	cr := &ContainerRecord{ID: newID(), SandboxID: sr.ID, State: Creating,
		Config: message[*runtime.ContainerConfig]{config}, StopSignal: 15}
	cr.configJSON = encodeConfig(cr.Config)
	c := newContainer(p, s, cr)
	if sr.configJSON == nil || cr.configJSON == nil {
		t.Fatal("a configuration was not encoded")
	}
	err := errors.Join(os.MkdirAll(p.containerDir(sr.ID, cr.ID), 0o700),
		os.MkdirAll(filepath.Dir(p.containerCopy(sr.ID, cr.ID)), 0o700),
		p.writeSandbox(sr), p.writeContainer(cr))
	if err != nil {
		t.Fatal(err)
	}
	check := func(state State, kept bool) {
		t.Helper()
		var readS SandboxRecord
		var readC ContainerRecord
		if err := errors.Join(record.Read(p.podRecord(sr.ID), sandboxFormat, &readS),
			record.Read(p.containerRecord(sr.ID, cr.ID), containerFormat, &readC)); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(readS.config(), pod) || readS.ID != sr.ID || readS.BootID != "b" || readS.State != s.Record().State {
			t.Errorf("%s: the sandbox is read as %+v", state, &readS)
		}
		if !proto.Equal(readC.config(), config) || readC.StopSignal != 15 || readC.State != state {
			t.Errorf("%s: the container is read as %+v", state, &readC)
		}
		if have := c.Record().configJSON != nil; have != kept {
			t.Errorf("%s: the encoding is kept: %v", state, have)
		}
	}
	check(Creating, true)
	if err := errors.Join(s.become(Ready, nil), c.become(Created, func(r *ContainerRecord) { r.Pid = 7 })); err != nil {
		t.Fatal(err)
	}
	check(Created, true)
	if s.Record().configJSON != nil {
		t.Error("the encoding of a ready pod's configuration is kept")
	}
	if err := c.become(Running, nil); err != nil {
		t.Fatal(err)
	}
	check(Running, false)
	if err := c.become(Exited, nil); err != nil {
		t.Fatal(err)
	}
	check(Exited, false)
}
