package main

import (
	"bytes"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// newCLI returns an invocation with an environment of its own, and what it will write.
func newCLI(env map[string]string) (c *cli, out, errs *bytes.Buffer) {
	out, errs = &bytes.Buffer{}, &bytes.Buffer{}
	return &cli{in: strings.NewReader(""), out: out, err: errs, env: func(k string) string { return env[k] }, version: "dev"}, out, errs
}

const (
	ready    = runtimeapi.PodSandboxState_SANDBOX_READY
	notReady = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	running  = runtimeapi.ContainerState_CONTAINER_RUNNING
	exited   = runtimeapi.ContainerState_CONTAINER_EXITED
)

func sandbox(id, namespace, name string, state runtimeapi.PodSandboxState, created int64) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{Id: id, State: state, CreatedAt: created, Metadata: &runtimeapi.PodSandboxMetadata{Namespace: namespace, Name: name}}
}

func container(id, pod, name string, state runtimeapi.ContainerState, attempt uint32) *runtimeapi.Container {
	return &runtimeapi.Container{Id: id, PodSandboxId: pod, State: state, Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt}}
}

// stock is a node with names that are easy, names that are used twice, and names that look like ids.
func stock() *inventory {
	return &inventory{
		pods: []*runtimeapi.PodSandbox{
			sandbox("aaa1", "default", "web", ready, 1),
			sandbox("aaa2", "default", "db", ready, 2),
			sandbox("bbb1", "shop", "db", ready, 3),
			sandbox("ccc1", "default", "again", notReady, 4),
			sandbox("ccc2", "default", "again", ready, 3), // the older one is the ready one
			sandbox("ddd1", "default", "aaa", ready, 5),   // a name that is the beginning of ids
			sandbox("ddd2", "default", "e9", ready, 6),
			sandbox("ddd3", "default", "gone2", ready, 7), // and the name of a container elsewhere
			sandbox("fff1", "default", "anew", notReady, 1),
			sandbox("fff2", "default", "anew", ready, 2),
		},
		containers: []*runtimeapi.Container{
			container("111a", "aaa1", "web", running, 0),
			container("111b", "aaa1", "log", running, 0),
			container("222a", "aaa2", "main", exited, 0),
			container("222b", "aaa2", "main", running, 1), // restarted
			container("333a", "bbb1", "main", exited, 0),
			container("444a", "ccc2", "only", exited, 0),
			container("bbb7", "ddd1", "x", running, 0), // an id that begins like a pod's

			container("e9e9e9e9e9e9", "ddd2", "x", running, 0), // ids that begin like names
			container("5f6a7b8c9d0e", "ddd3", "gone", exited, 0),
			container("0a0a0a0a0a0a", "ddd3", "two", running, 0),
			container("0b0b0b0b0b0b", "ddd2", "gone2", running, 0),
			container("90e0e0e0e0e0", "ddd2", "gone", running, 0),
			container("77777777aaaa", "fff1", "again-main", exited, 3), // of an older sandbox
			container("77777777bbbb", "fff2", "again-main", running, 0),
		},
	}
}

// loggedInventory has pod a, whose sandbox was made anew, with container c at its third attempt, and pod b with c and d.
func loggedInventory() *inventory {
	pod := func(id, name, uid string, at int64, state runtimeapi.PodSandboxState) *runtimeapi.PodSandbox {
		return &runtimeapi.PodSandbox{Id: id, Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: uid, Namespace: "default"}, CreatedAt: at, State: state}
	}
	ct := func(id, pod, name string, attempt uint32) *runtimeapi.Container {
		return &runtimeapi.Container{Id: id, PodSandboxId: pod, Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt}, CreatedAt: int64(attempt)}
	}
	return &inventory{
		pods: []*runtimeapi.PodSandbox{
			pod("a-old", "a", "uid-a", 1, runtimeapi.PodSandboxState_SANDBOX_NOTREADY), pod("a-new", "a", "uid-a", 2, runtimeapi.PodSandboxState_SANDBOX_READY),
			pod("b", "b", "uid-b", 3, runtimeapi.PodSandboxState_SANDBOX_READY),
		},
		containers: []*runtimeapi.Container{
			ct("a0", "a-old", "c", 0), ct("a1", "a-old", "c", 1), ct("a2", "a-new", "c", 2), ct("bc", "b", "c", 0), ct("bd", "b", "d", 1), ct("bd-old", "b", "d", 0),
		},
	}
}
