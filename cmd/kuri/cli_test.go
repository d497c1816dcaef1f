package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
)

// newCLI returns an invocation with an environment of its own, and what it will write.
func newCLI(env map[string]string) (c *cli, out, errs *bytes.Buffer) {
	out, errs = &bytes.Buffer{}, &bytes.Buffer{}
	return &cli{in: strings.NewReader(""), out: out, err: errs, env: func(k string) string { return env[k] }}, out, errs
}

func TestExitCodesOfUsageAndReach(t *testing.T) {
	none := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	config := map[string]string{"CRI_CONFIG_FILE": emptyFile(t)}
	manifest := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(manifest, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i, imagePolicy: x}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"", 0, ""},
		{"--help", 0, ""},
		{"exec --help", 0, ""},
		{"completion bash", 0, ""},
		{"pids", 2, `no command "pids": did you mean pods`},
		{"pods --nope", 2, "unknown flag: --nope"},
		{"pods extra", 2, "extra"},
		{"exec web", 2, `something is missing after "web": kuri exec [flags] CONTAINER [--] COMMAND [ARG...]`},
		{"exec", 2, "arguments are missing: kuri exec"},
		{"exec", 2, "kuri: see kuri exec --help"},
		{"image rm", 2, "see kuri image rm --help"},
		{"inspect a b", 2, `"b" is one too many: kuri inspect NAME`},
		{"image nope", 2, `there is no command "kuri image nope"`},
		{"rmp x", 2, "kuri rm"},
		{"get pods", 2, "kuri pods"},
		{"logs --tail x web", 2, `--tail "x": expected a whole number`},
		{"stop -g 1.5 web", 2, `--grace "1.5": expected a whole number`},
		{"pods -l nonsense", 2, `--label "nonsense": expected KEY=VALUE`},
		{"-t 5 pods", 2, `--timeout "5": expected a duration with its unit: 5s?`},
		{"-t soon pods", 2, `--timeout "soon": expected a duration such as`},
		{"ps -a=maybe", 2, `--all "maybe": expected true or false`},
		{"logs --folow web", 2, "unknown flag: --folow: did you mean --follow?"},
		{"ps -Z", 2, "unknown flag: -Z"},
		{"ps --format x", 2, "(here it is -o, --output)"},
		{"port-forward web 99999", 2, "a number from 1 to 65535"},
		{"port-forward web 1:2:3", 2, "PORT or LOCAL:PORT"},
		{"logs --tail -5 web", 2, "--tail -5"},
		{"stop -g -5 web", 2, "--grace -5"},
		{"exec --time-limit -5s web ls", 2, "cannot be negative"},
		{"get pods", 2, "it is kuri pods, kuri ps or kuri images"},
		{"ps --filter name=x", 2, "(here it is --name, --label or --state)"},
		{"apply -f web.yaml", 2, "there is no command \"apply\": it is kuri run FILE"},
		{"inspectp -o json x", 2, "it is kuri inspect"},
		{"push x", 2, "there is no command \"push\": it is not supported: kuri save"},
		{"debug web", 2, "what is to be run? kuri debug -it web for a shell, or kuri debug web -- COMMAND"},
		{"debug", 2, "arguments are missing: kuri debug [flags] NAME [-- COMMAND [ARG...]]"},
		{"debug -t web", 2, "-t gives a terminal to type at, so it goes with -i"},
		{"daemon stats", 2, "there is no command \"kuri daemon stats\": did you mean stacks or state?"},
		{"down", 2, "arguments are missing: kuri down FILE"},
		{"down /does/not/exist.yaml", 3, "no such file"},
		{"run --configmap x busybox", 2, "--configmap is for a manifest"},
		{"run --configmap /does/not/exist.yaml " + manifest, 3, "--configmap: open /does/not/exist.yaml"},
		{"runp " + manifest, 1, "is not a PodSandboxConfig of the CRI: it has no field \"apiVersion\"; this is a manifest of Kubernetes, which kuri run takes"},
		{"create web x", 2, "something is missing after \"x\""},
		{"tag web", 2, "something is missing after \"web\""},
		{"help nosuch", 2, `there is no command "nosuch"`},
		{"help image nosuch", 2, `there is no command "kuri image nosuch"`},
		{"help image ls", 0, ""},
		{"run /", 1, "/ is a directory"},
		{"exec --detach-keys ctrl-1 web sh", 2, `"ctrl-1" is neither a character`},
		{"attach --detach-keys ab web", 2, "--detach-keys"},
		{"exec web --", 2, "which command?"},
		{"pods -o xml", 2, "expected table, wide, json, yaml, jsonpath=TEMPLATE or go-template=TEMPLATE"},
		{"pods -o json=x", 2, "expected table"},
		{"pods -o jsonpath={.items[", 2, "-o jsonpath"},
		{"pods -o jsonpath", 2, "expected a template"},
		{"pods -o go-template={{.x", 2, "-o go-template"},
		{"pods --sort weight", 2, `--sort "weight": expected age, name`},
		{"pods --name (", 2, "not a regular expression: missing closing"},
		{"pods --state up", 2, `--state "up": expected ready, notready`},
		{"ps --state SANDBOX_READY", 2, "expected created, running"},
		{"exec web -it", 2, "which command?"},
		{"exec web -c", 2, "flag needs an argument"},
		{"--version", 0, ""},
		{"-r tcp://127.0.0.1:1 pods", 2, "TCP is not supported"},
		{"-t -5s pods", 2, "negative"},
		{"stop", 2, "either names, or --all"},
		{"rm --all web", 2, "either names, or --all"},
		{"logs --since yesterday web", 2, "--since"},
		{"pull --creds nonsense x", 2, "USER:PASSWORD"},
		{"run /does/not/exist.yaml", 3, "no such file"},
		{"run " + manifest, 1, `unknown field "spec.containers[0].imagePolicy"`},
		{"load /does/not/exist.tar", 3, "no such file"},
		{"load " + t.TempDir(), 1, "without an oci-layout"},
		{"-r " + none + " pods", 4, "cannot reach a CRI runtime at " + none + ": no such file"},
		{"-t 5s -r " + none + " exec web -- ls -la", 4, "cannot reach"},
		{"pods -r " + none, 4, "--runtime-endpoint names another socket"},
		{"-r " + none + " version", 4, "cannot reach"},
		{"-r " + none + " -i " + none + " images", 4, "cannot reach"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			c, _, errs := newCLI(config)
			if code := c.main(context.Background(), strings.Fields(tt.args)); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.Contains(errs.String(), tt.says) || tt.code == 0 && errs.Len() > 0 {
				t.Errorf("says %q, want %q", errs, tt.says)
			}
		})
	}
}

func emptyFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "crictl.yaml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestInterrupted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path) // never answers
	if err != nil {
		t.Skip(err) // the temporary directory's path is too long
	}
	defer l.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(100*time.Millisecond, func() { cancel(interrupted{syscall.SIGTERM}) })
	c, _, errs := newCLI(map[string]string{"CRI_CONFIG_FILE": emptyFile(t)})
	if code := c.main(ctx, []string{"-r", "unix://" + path, "pods"}); code != 128+15 || !strings.Contains(errs.String(), "interrupted (terminated)") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	c, _, errs = newCLI(nil)
	left := errors.Join(ctx.Err(), leftError{errors.New("remove pod p: stuck")})
	if code := c.exit(ctx, left); code != 128+15 || !strings.Contains(errs.String(), "remove pod p: stuck") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

func TestExitCodesOfErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		says string
	}{
		{nil, 0, ""},
		{exitCode(42), 42, ""},
		{fmt.Errorf("wrapped: %w", exitCode(42)), 42, ""},
		{errors.New("why"), 1, "kuri: why\n"},
		{errors.New("one\ntwo"), 1, "kuri: one\nkuri: two\n"},
		{usageError{errors.New("why")}, 2, "kuri: why\nkuri: see kuri --help\n"},
		{notFound("there is no pod %q", "x"), 3, "kuri: there is no pod \"x\"\n"},
		{errors.Join(notFound("a"), notFound("b")), 3, "kuri: a\nkuri: b\n"},
		{fmt.Errorf("stop x: %w", status.Error(codes.NotFound, "gone")), 3, "kuri: stop x: gone\n"},
		{fmt.Errorf("pull x: %w", status.Error(codes.Unavailable, "registry.example does not answer")), 1, "kuri: pull x: registry.example does not answer\n"},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), 4, "kuri: error reading from server: EOF\nkuri: the connection broke: the runtime has ended, or was started again meanwhile\n"},
		{fmt.Errorf("list: %w", status.Error(codes.Unavailable, "connection error: desc = x")), 4, "kuri: list: connection error: desc = x\nkuri: the connection broke: the runtime has ended, or was started again meanwhile\n"},
		{status.Error(codes.DeadlineExceeded, "sleep was killed"), 1, "kuri: sleep was killed\n"},
		{fmt.Errorf("list: %w", status.Error(codes.DeadlineExceeded, "context deadline exceeded")), 1, "kuri: list: context deadline exceeded (see --timeout)\n"},
	} {
		c, _, errs := newCLI(nil)
		if code := c.exit(context.Background(), tt.err); code != tt.code || errs.String() != tt.says {
			t.Errorf("%v: %d, %q", tt.err, code, errs)
		}
	}
}

func TestSettings(t *testing.T) {
	file := filepath.Join(t.TempDir(), "crictl.yaml")
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		content string
		env     map[string]string
		flags   settings
		want    settings
		err     string
	}{
		{name: "defaults", want: settings{Runtime: defaultEndpoint, Image: defaultEndpoint, Timeout: defaultTimeout}},
		{name: "file", content: "runtime-endpoint: unix:///f\ntimeout: 7\ndebug: true\n", want: settings{Runtime: "unix:///f", Image: "unix:///f", Timeout: 7 * time.Second}},
		{name: "duration", content: "timeout: 1m\n", want: settings{Runtime: defaultEndpoint, Image: defaultEndpoint, Timeout: time.Minute}},
		{name: "seconds as text", content: "timeout: \"9\"\n", want: settings{Runtime: defaultEndpoint, Image: defaultEndpoint, Timeout: 9 * time.Second}},
		{name: "environment before file", content: "runtime-endpoint: unix:///f\nimage-endpoint: unix:///g\n",
			env:  map[string]string{"CONTAINER_RUNTIME_ENDPOINT": "unix:///e"},
			want: settings{Runtime: "unix:///e", Image: "unix:///g", Timeout: defaultTimeout}},
		{name: "flag before environment", env: map[string]string{"CONTAINER_RUNTIME_ENDPOINT": "unix:///e", "IMAGE_SERVICE_ENDPOINT": "unix:///h"},
			flags: settings{Runtime: "/a.sock", Timeout: time.Second},
			want:  settings{Runtime: "/a.sock", Image: "unix:///h", Timeout: time.Second}},
		{name: "not YAML", content: "a: [", err: "read the configuration " + file},
		{name: "timeout", content: "timeout: soon", err: `timeout "soon"`},
		{name: "timeout of a kind", content: "timeout: [1]", err: "expected seconds"},
		{name: "endpoint", content: "image-endpoint: tcp://x:1", err: "TCP is not supported"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			write(tt.content)
			c, _, _ := newCLI(tt.env)
			c.flags = tt.flags
			c.flags.File = file
			got, err := c.settings()
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("%+v %v, want %+v", got, err, tt.want)
			}
		})
	}
	c, _, _ := newCLI(nil)
	c.flags.File = file + ".none"
	if _, err := c.settings(); err == nil {
		t.Error("a file that was named and is not there is no error")
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 45 * time.Second: "45s", 119 * time.Second: "119s", 200 * time.Second: "3m20s", 180 * time.Second: "3m",
		25*time.Minute + 3*time.Second: "25m", 5*time.Hour + 12*time.Minute: "5h12m", 20 * time.Hour: "20h",
		76 * time.Hour: "3d4h", 40 * 24 * time.Hour: "40d",
	} {
		if got := short(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 5 << 30: "5.0 GiB", 1<<64 - 1: "16.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestOutput(t *testing.T) {
	c, out, _ := newCLI(nil)
	msg := &runtimeapi.Container{Id: "x", Labels: map[string]string{"a": "b"}}
	c.format = formatJSON
	if err := c.printData(map[string]any{"status": msg, "info": unpack(map[string]string{"pid": "7", "text": "plain", "o": `{"k":[1]}`})}); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{`"state": "CONTAINER_CREATED"`, `"pid": 7`, `"text": "plain"`, `"k": [`} { // zero values are told
		if !strings.Contains(out.String(), part) {
			t.Errorf("%s is not in:\n%s", part, out)
		}
	}
	out.Reset()
	c.format = formatYAML
	if err := c.printData([]any{msg}); err != nil || !strings.Contains(out.String(), "state: CONTAINER_CREATED") {
		t.Errorf("%v:\n%s", err, out)
	}
	out.Reset()
	if err := table(out, [][]string{{"A", "B"}, {"evil\x1b[31m\n", ""}}); err != nil || out.String() != "A            B\nevil?[31m?   -\n" {
		t.Errorf("%v: %q", err, out)
	}
}

func TestRegistryName(t *testing.T) {
	for arg, want := range map[string]string{
		"docker.io": "docker.io", "index.docker.io": "docker.io", "https://index.docker.io/v1/": "docker.io", "registry-1.docker.io": "docker.io",
		"Index.Docker.IO:443": "docker.io", "https://registry.hub.docker.com/v2/": "docker.io",
		"quay.io": "quay.io", "https://quay.io/": "quay.io", "HTTPS://Quay.IO/v1/": "quay.io", "quay.io:443": "quay.io:443", "http://quay.io:80/v2": "quay.io:80", "localhost": "localhost", "localhost:5000": "localhost:5000", "[::1]:5000": "[::1]:5000",
		"quay.io/team": "", "busybox": "", "": "", "a b": "", "docker.io/library": "",
	} {
		if got, err := registryName([]string{arg}); got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", arg, got, err)
		}
	}
	if got, err := registryName(nil); got != "docker.io" || err != nil {
		t.Error(got, err)
	}
}

func TestImageRows(t *testing.T) {
	two := "sha256:" + strings.Repeat("2", 64)
	v := loggedInventory()
	v.containers[0].ImageId, v.containers[1].ImageRef, v.containers[3].Image = two, two, &runtimeapi.ImageSpec{Image: "b:2"}
	v.containers[5].ImageRef = two
	rows := imageRows([]*runtimeapi.Image{
		{Id: two, RepoTags: []string{"z:1", "b:2"}, Size: 2048, Pinned: true},
		{Id: "sha256:" + strings.Repeat("1", 64), RepoDigests: []string{"a@sha256:" + strings.Repeat("f", 64)}},
		{Id: "sha256:" + strings.Repeat("3", 64)},
		{Id: "sha256:" + strings.Repeat("4", 64)},
	}, map[string]*kuriv1.ImageDescription{
		two:                                 {PulledAt: time.Now().Add(-200 * time.Second).UnixNano(), InUse: true},
		"sha256:" + strings.Repeat("3", 64): nil,
		"sha256:" + strings.Repeat("4", 64): {InUse: true},
	}, v.imageUsers(), false, false)
	want := [][]string{
		{"IMAGE", "ID", "SIZE", "AGE", "PINNED", "IN USE BY"},
		{"", "333333333333", "0 B", "-", "", ""},
		{"", "444444444444", "0 B", "-", "", "a volume"},
		{"a@ffffffffffff", "111111111111", "0 B", "-", "", ""},
		{"b:2", "222222222222", "2.0 KiB", "3m20s", "pinned", "a/c, b/c, and 1 more"},
		{"z:1", "222222222222", "2.0 KiB", "3m20s", "pinned", "a/c, b/c, and 1 more"},
	}
	if fmt.Sprint(rows) != fmt.Sprint(want) {
		t.Errorf("got %v", rows)
	}
}

func TestWideImageRows(t *testing.T) {
	rows := imageRows([]*runtimeapi.Image{
		{Id: "sha256:" + strings.Repeat("1", 64), RepoTags: []string{"a:1"}, RepoDigests: []string{"a@sha256:" + strings.Repeat("f", 64)}, Uid: &runtimeapi.Int64Value{}},
		{Id: "sha256:" + strings.Repeat("2", 64), RepoTags: []string{"b:1"}, Username: "www"},
	}, nil, nil, false, true)
	want := [][]string{
		{"IMAGE", "ID", "SIZE", "AGE", "PINNED", "IN USE BY", "DIGEST", "USER"},
		{"a:1", "111111111111", "0 B", "-", "", "", "ffffffffffff", "0"},
		{"b:1", "222222222222", "0 B", "-", "", "", "", "www"},
	}
	if fmt.Sprint(rows) != fmt.Sprint(want) {
		t.Errorf("got %v", rows)
	}
}

// What a runtime's lists show to be in use, pinned or mounted is not pruned.
func TestUnusedOf(t *testing.T) {
	id := func(digit string) string { return "sha256:" + strings.Repeat(digit, 64) }
	list := []*runtimeapi.Image{
		{Id: id("1"), RepoTags: []string{"free:1"}, Size: 10},
		{Id: id("2"), RepoTags: []string{"pause:1"}, Size: 20, Pinned: true},
		{Id: id("3"), RepoTags: []string{"byid:1"}, Size: 30},
		{Id: id("4"), RepoTags: []string{"byname:1"}, Size: 40},
		{Id: id("5"), RepoDigests: []string{"digest@" + id("a")}, Size: 50},
		{Id: id("6"), RepoTags: []string{"mounted:1"}, Size: 60},
		{Id: id("7"), RepoDigests: []string{"old@" + id("b")}, Size: 70},
	}
	v := &inventory{containers: []*runtimeapi.Container{
		{Id: "x", ImageId: id("3")}, {Id: "y", Image: &runtimeapi.ImageSpec{Image: "byname:1"}}, {Id: "z", ImageRef: "digest@" + id("a")},
	}}
	got := unusedOf(list, v.imageUsers(), map[string]bool{"mounted:1": true})
	var names []string
	for _, i := range got.Images {
		names = append(names, i.References...)
	}
	if want := []string{"free:1", "old@" + id("b")}; fmt.Sprint(names) != fmt.Sprint(want) || got.Bytes != 80 {
		t.Errorf("%v, %d bytes", names, got.Bytes)
	}
}

// Errors of the network have the address and the reason, and no words of Go's packages.
func TestPlainNetwork(t *testing.T) {
	for in, want := range map[string]string{
		`ask a:1 whether: Get "https://a:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused`:                                                  "ask a:1 whether: 127.0.0.1:1: connection refused",
		"host r.io did not answer: dial tcp: lookup r.io on 10.0.0.1:53: no such host":                                                               "host r.io did not answer: there is no host r.io",
		"RegistryUnavailable: host r.io did not answer: dial tcp: lookup r.io on 10.0.0.1:53: dial udp 10.0.0.1:53: connect: network is unreachable": "host r.io did not answer: look up the host r.io on 10.0.0.1:53: network is unreachable",
		"host r.io did not answer: dial tcp: lookup r.io on 10.0.0.1:53: read udp 10.0.0.2:40->10.0.0.1:53: i/o timeout":                             "host r.io did not answer: look up the host r.io on 10.0.0.1:53: i/o timeout",
		"dial tcp [::1]:80: connect: connection refused":                                                                                             "[::1]:80: connection refused",
		"create container web: no such image":                                                                                                        "create container web: no such image",
	} {
		if got := plainNetwork(in); got != want {
			t.Errorf("%q\nbecame %q\nwant   %q", in, got, want)
		}
	}
}

func TestContainerState(t *testing.T) {
	for _, tt := range []struct {
		status *runtimeapi.ContainerStatus
		want   string
	}{
		{&runtimeapi.ContainerStatus{State: running}, "running"},
		{&runtimeapi.ContainerStatus{}, "created"},
		{&runtimeapi.ContainerStatus{State: exited, Reason: "Completed"}, "exited (0)"},
		{&runtimeapi.ContainerStatus{State: exited, ExitCode: 137, Reason: "OOMKilled"}, "exited (137, OOMKilled)"},
		{&runtimeapi.ContainerStatus{State: runtimeapi.ContainerState_CONTAINER_UNKNOWN}, "unknown"},
	} {
		if got := containerState(tt.status); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"": {}, "10m": now.Add(-10 * time.Minute), "2026-01-01T00:00:00Z": time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := parseSince(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %s %v", in, got, err)
		}
	}
	for _, in := range []string{"-5m", "yesterday", "2026-01-01"} {
		if _, err := parseSince(in, now); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

func TestParseResolver(t *testing.T) {
	got := parseResolver([]byte("# x\nsearch old\nnameserver 1.1.1.1 # y\nnameserver fd00::1\noptions ndots:2 rotate\nsearch a.example b.example\nnameserver\nsortlist z\n"))
	if want := `servers:"1.1.1.1" servers:"fd00::1" searches:"a.example" searches:"b.example" options:"ndots:2" options:"rotate"`; strings.Join(strings.Fields(got.String()), " ") != want {
		t.Errorf("got %s", got)
	}
}

func TestCredentials(t *testing.T) {
	c, _, _ := newCLI(nil)
	c.in = strings.NewReader("me:a:b\n")
	if a, err := c.credentials(t.Context(), "-"); err != nil || a.Username != "me" || a.Password != "a:b" {
		t.Errorf("%v %v", a, err)
	}
	if a, err := c.credentials(t.Context(), ""); a != nil || err != nil {
		t.Errorf("%v %v", a, err)
	}
}

func TestGrace(t *testing.T) {
	for in, want := range map[string]int64{"": 30, "7": 7, "0": 0, "-1": 30, "x": 30} {
		if got := graceOf(map[string]string{"io.kubernetes.pod.terminationGracePeriod": in}); got != want {
			t.Errorf("%q: %d, want %d", in, got, want)
		}
	}
}
