package clitest

import (
	"bytes"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

// New returns an invocation with an environment of its own, and what it will write.
func New(env map[string]string) (c *cli.CLI, out, errs *bytes.Buffer) {
	out, errs = &bytes.Buffer{}, &bytes.Buffer{}
	return &cli.CLI{In: strings.NewReader(""), Out: out, Err: errs,
		Env: func(k string) string { return env[k] }, Version: "dev"}, out, errs
}

const (
	Ready    = runtimeapi.PodSandboxState_SANDBOX_READY
	notReady = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	Running  = runtimeapi.ContainerState_CONTAINER_RUNNING
	Exited   = runtimeapi.ContainerState_CONTAINER_EXITED
)

func Sandbox(id, namespace, name string, state runtimeapi.PodSandboxState, created int64) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{Id: id, State: state, CreatedAt: created,
		Metadata: &runtimeapi.PodSandboxMetadata{Namespace: namespace, Name: name}}
}

func container(id, pod, name string, state runtimeapi.ContainerState, attempt uint32) *runtimeapi.Container {
	return &runtimeapi.Container{Id: id, PodSandboxId: pod, State: state,
		Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt}}
}

// Stock is a node with names that are easy, names that are used twice, and names that look like ids.
func Stock() *cli.Inventory {
	return &cli.Inventory{
		Pods: []*runtimeapi.PodSandbox{
			Sandbox("aaa1", "default", "web", Ready, 1),
			Sandbox("aaa2", "default", "db", Ready, 2),
			Sandbox("bbb1", "shop", "db", Ready, 3),
			Sandbox("ccc1", "default", "again", notReady, 4),
			Sandbox("ccc2", "default", "again", Ready, 3), // the older one is the ready one
			Sandbox("ddd1", "default", "aaa", Ready, 5),   // a name that is the beginning of ids
			Sandbox("ddd2", "default", "e9", Ready, 6),
			Sandbox("ddd3", "default", "gone2", Ready, 7), // and the name of a container elsewhere
			Sandbox("fff1", "default", "anew", notReady, 1),
			Sandbox("fff2", "default", "anew", Ready, 2),
		},
		Containers: []*runtimeapi.Container{
			container("111a", "aaa1", "web", Running, 0),
			container("111b", "aaa1", "log", Running, 0),
			container("222a", "aaa2", "main", Exited, 0),
			container("222b", "aaa2", "main", Running, 1), // restarted
			container("333a", "bbb1", "main", Exited, 0),
			container("444a", "ccc2", "only", Exited, 0),
			container("bbb7", "ddd1", "x", Running, 0), // an id that begins like a pod's

			container("e9e9e9e9e9e9", "ddd2", "x", Running, 0), // ids that begin like names
			container("5f6a7b8c9d0e", "ddd3", "gone", Exited, 0),
			container("0a0a0a0a0a0a", "ddd3", "two", Running, 0),
			container("0b0b0b0b0b0b", "ddd2", "gone2", Running, 0),
			container("90e0e0e0e0e0", "ddd2", "gone", Running, 0),
			container("77777777aaaa", "fff1", "again-main", Exited, 3), // of an older sandbox
			container("77777777bbbb", "fff2", "again-main", Running, 0),
		},
	}
}

// LoggedInventory has pod a, whose sandbox was made anew, with container c at its third attempt,
// and pod b with c and d.
func LoggedInventory() *cli.Inventory {
	pod := func(id, name, uid string, at int64, state runtimeapi.PodSandboxState) *runtimeapi.PodSandbox {
		return &runtimeapi.PodSandbox{Id: id, Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Uid: uid,
			Namespace: "default"}, CreatedAt: at, State: state}
	}
	ct := func(id, pod, name string, attempt uint32) *runtimeapi.Container {
		return &runtimeapi.Container{Id: id, PodSandboxId: pod,
			Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt}, CreatedAt: int64(attempt)}
	}
	return &cli.Inventory{
		Pods: []*runtimeapi.PodSandbox{
			pod("a-old", "a", "uid-a", 1, runtimeapi.PodSandboxState_SANDBOX_NOTREADY), pod("a-new", "a", "uid-a", 2,
				runtimeapi.PodSandboxState_SANDBOX_READY),
			pod("b", "b", "uid-b", 3, runtimeapi.PodSandboxState_SANDBOX_READY),
		},
		Containers: []*runtimeapi.Container{
			ct("a0", "a-old", "c", 0), ct("a1", "a-old", "c", 1), ct("a2", "a-new", "c", 2), ct("bc", "b", "c", 0), ct("bd", "b",
				"d", 1), ct("bd-old", "b", "d", 0),
		},
	}
}
