package pod

import (
	"os"
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func sandboxItem(r *SandboxRecord) proto.Message {
	return &runtime.PodSandbox{Id: r.ID, State: r.SandboxState(), Labels: r.config().GetLabels()}
}

func containerItem(r *ContainerRecord) proto.Message {
	return &runtime.Container{Id: r.ID, State: r.ContainerState(), Labels: r.config().GetLabels()}
}

// A list entry is encoded once for each record, and again for the next record.
func TestEncodedItemsFollowTheirRecords(t *testing.T) {
	p := eventPods(t, 10)
	s := p.testSandbox(t)
	if err := os.MkdirAll(p.paths.podDir(s.Record().ID), 0o700); err != nil {
		t.Fatal(err)
	}
	list := func() ([]byte, *runtime.PodSandbox) {
		t.Helper()
		items, err := p.EncodedSandboxes(nil, sandboxItem)
		if err != nil || len(items) != 1 {
			t.Fatalf("%d items: %v", len(items), err)
		}
		m := &runtime.PodSandbox{}
		if err := proto.Unmarshal(items[0], m); err != nil {
			t.Fatal(err)
		}
		return items[0], m
	}
	first, m := list()
	if !proto.Equal(m, sandboxItem(s.Record())) || m.State != runtime.PodSandboxState_SANDBOX_READY {
		t.Errorf("%v", m)
	}
	if again, _ := list(); &again[0] != &first[0] {
		t.Error("it is encoded again")
	}
	if err := s.become(NotReady, nil); err != nil {
		t.Fatal(err)
	}
	if _, m := list(); m.State != runtime.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("after a change: %v", m)
	}
}

func BenchmarkLists(b *testing.B) {
	p := &Pods{view: newView()}
	for range 1000 {
		v := &p.view
		s := &Sandbox{view: v, containers: map[string]*Container{}}
		s.rec.Store(&SandboxRecord{ID: newID(), State: NotReady,
			Config: message[*runtime.PodSandboxConfig]{&runtime.PodSandboxConfig{
				Metadata: &runtime.PodSandboxMetadata{Name: "a-pod-with-a-name", Namespace: "namespace", Uid: newID()[:36]},
				Labels: map[string]string{"app": "one", "io.kubernetes.pod.name": "a-pod-with-a-name",
					"io.kubernetes.pod.namespace": "namespace"},
			}}})
		p.add(s)
		for range 3 {
			c := newContainer(p.paths, s, &ContainerRecord{ID: newID(), SandboxID: s.Record().ID, State: Exited,
				Config: message[*runtime.ContainerConfig]{&runtime.ContainerConfig{
					Metadata: &runtime.ContainerMetadata{Name: "container"},
					Labels: map[string]string{"io.kubernetes.container.name": "container",
						"io.kubernetes.pod.name": "a-pod-with-a-name", "io.kubernetes.pod.namespace": "namespace"},
					Annotations: map[string]string{"io.kubernetes.container.hash": "12345678",
						"io.kubernetes.container.restartCount": "0"},
				}}})
			p.addContainer(c)
		}
	}
	for b.Loop() {
		if _, err := p.EncodedSandboxes(nil, sandboxItem); err != nil {
			b.Fatal(err)
		}
		if _, err := p.EncodedContainers(ContainerFilter{}, containerItem); err != nil {
			b.Fatal(err)
		}
	}
}
