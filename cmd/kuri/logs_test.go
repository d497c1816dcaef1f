package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/crilog"
)

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

func TestLogged(t *testing.T) {
	for _, tt := range []struct {
		names    string
		previous bool
		want     string // id:prefix
		missing  bool
	}{
		{"a", false, "a2:", false},
		{"a/c b/c", false, "a2:a/c bc:b/c", false},
		{"b", false, "bc:c bd:d", false},
		{"b b/d", false, "bc:c bd:d", false},
		{"a", true, "a1:", false},
		{"a1", true, "a0:", false},
		{"b", true, "bd-old:", false},
		{"b/c", true, "", true},
		{"none", false, "", true},
	} {
		v := loggedInventory()
		list, err := v.logged(strings.Fields(tt.names), tt.previous)
		if (err != nil) != tt.missing {
			t.Errorf("%s: %v", tt.names, err)
			continue
		}
		var got []string
		for _, s := range v.sources(list, nil) {
			got = append(got, s.id+":"+s.prefix)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s, previous %t: %q, want %q", tt.names, tt.previous, got, tt.want)
		}
	}
}

// TestOthersWordsAreSafe: what a terminal would obey is not passed on from names and from errors of a runtime.
func TestOthersWordsAreSafe(t *testing.T) {
	var b bytes.Buffer
	(&cli{err: &b}).say(fmt.Errorf("stop x: %w", status.Error(codes.Unknown, "why\x1b]0;title\x07\u009b2J\nand why")))
	if got, want := b.String(), "kuri: stop x: why?]0;title??2J\nkuri: and why\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := string((&logPrinter{}).head(crilog.Entry{}, "pod/\x1b[31mred")); got != "[pod/?[31mred] " {
		t.Errorf("%q", got)
	}
}
