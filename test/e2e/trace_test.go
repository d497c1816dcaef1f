package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

type tracedOperation struct {
	Kind, Container, Init, Image, Caller, Error string
	Began, Took                                 int64
	Steps                                       []struct {
		Name        string
		After, Took int64
	}
}

type traceReport struct {
	Took       int64
	Operations []tracedOperation
}

// kuri trace shows the requests that started a pod, with their steps, and the program that created
// each container's first process.
func TestTrace(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	config := harness.Pod("traced")
	pod := d.RunPod(t, config)
	ref := d.Registry.Push(t, "traced:1", harness.Busybox(t))
	if _, err := d.Images.PullImage(t.Context(),
		&runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Fatal(err)
	}
	d.Run(t, pod, harness.Container("first", ref, "sleep", "1000"), config)
	d.Run(t, pod, harness.Container("second", ref, "sleep", "1000"), config)

	read := func(name string) traceReport {
		t.Helper()
		out, stderr, code := d.Kuri(t, "trace", name, "-o", "json")
		var got traceReport
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
			t.Fatalf("exit code %d, %v: %s%s", code, err, out, stderr)
		}
		return got
	}
	whole := read("traced")
	var kinds []string
	for _, o := range whole.Operations {
		kinds = append(kinds, strings.TrimSpace(o.Kind+" "+o.Container))
		if o.Took <= 0 || len(o.Steps) == 0 || o.Error != "" || o.Caller == "" {
			t.Errorf("%+v", o)
		}
		after := int64(0)
		for _, s := range o.Steps {
			if s.After < after || s.After > o.Took { // the last step ends with the operation, a moment after the response
				t.Errorf("the step %s of %s begins at %d and takes %d of %d", s.Name, o.Kind, s.After, s.Took, o.Took)
			}
			after = s.After + s.Took
		}
		switch native := o.Init == "native" || strings.HasPrefix(o.Init, "libcontainer: "); {
		case (o.Kind == "CreateContainer") != native:
			t.Errorf("%s %s: %q", o.Kind, o.Container, o.Init)
		case o.Kind == "PullImage" && o.Image != ref:
			t.Errorf("the pull is of %q", o.Image)
		}
	}
	want := []string{"RunPodSandbox", "PullImage", "CreateContainer first", "StartContainer first",
		"CreateContainer second", "StartContainer second"}
	if !slices.Equal(kinds, want) {
		t.Errorf("%q, want %q", kinds, want)
	}
	if one := read("traced/second"); len(one.Operations) != 3 || one.Operations[1].Container != "second" { // and the pull
		t.Errorf("%+v", one)
	}
	page, _, _ := d.Kuri(t, "trace", "traced")
	for _, want := range []string{"traced: ", "CreateContainer first ", "  process ", "█", "first process by "} {
		if !strings.Contains(page, want) {
			t.Errorf("there is no %q in\n%s", want, page)
		}
	}

	// If our own init cannot create a container, the trace says why.
	file := filepath.Join(t.TempDir(), "uptime")
	if err := os.WriteFile(file, []byte("1 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	odd := harness.Pod("odd")
	c := harness.Container("c", ref, "sleep", "1000")
	c.Mounts = append(c.Mounts, &runtimeapi.Mount{HostPath: file, ContainerPath: "/proc/uptime"})
	d.Run(t, d.RunPod(t, odd), c, odd)
	init := func(pod string) string {
		got := read(pod)
		if i := slices.IndexFunc(got.Operations,
			func(o tracedOperation) bool { return o.Kind == "CreateContainer" }); i >= 0 {
			return got.Operations[i].Init
		}
		return ""
	}
	if got := init("odd"); got != "libcontainer: a mount in /proc" {
		t.Errorf("made by %q", got)
	}
	if st, err := d.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{}); err != nil ||
		!st.RuntimeHandlers[0].Features.UserNamespaces {
		t.Logf("SKIP: no user namespaces: %v", err)
	} else {
		mapped := harness.Pod("mapped")
		ids := []*runtimeapi.IDMapping{{HostId: 1 << 20, ContainerId: 0, Length: 1 << 16}}
		mapped.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
			UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids},
		}}}
		c := harness.Container("c", ref, "sleep", "1000")
		c.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: mapped.Linux.SecurityContext.NamespaceOptions}}
		d.Run(t, d.RunPod(t, mapped), c, mapped)
		if got := init("mapped"); got != init("traced") {
			t.Errorf("in a user namespace the first process is made by %q", got)
		}
	}

	// Traces are only in memory.
	d.Restart(t)
	if _, stderr, code := d.Kuri(t, "trace", "traced"); code != 3 || !strings.Contains(stderr, "since its own start") {
		t.Errorf("after a restart: exit code %d, %s", code, stderr)
	}
}
