package e2e

import (
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
	"github.com/kuri-cri/kuri/test/image"
)

// The values of environment variables are bytes: a container's process and its execs get them unchanged.
func TestEnvironmentOfBytes(t *testing.T) {
	s := newShell(t)
	env := func(c *container, sec *security) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "BIN", Value: []byte{0xff, 0x00 + 1, 0xc3, 'x'}},
			{Key: "TEXT", Value: []byte("plain")}}
		sec.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
	}
	const look = `printf %s "$BIN" | od -An -tx1; echo $TEXT; env | grep -c _KURI; ps | head -2 | tail -1`
	if got := s.says(t, env, "sh", "-c", look); !strings.HasPrefix(got, " ff 01 c3 78\nplain\n0\n") ||
		strings.Contains(got, "exe") {
		t.Errorf("%q", got)
	}
	id := s.run(t, env, "sleep", "1000")
	if got, _, code := s.Exec(t, id, "sh", "-c", look); code != 0 || !strings.HasPrefix(got, " ff 01 c3 78\nplain\n0\n") {
		t.Errorf("exec: %q, exit %d", got, code)
	}
	if st := s.WaitExit(t, s.run(t, env, "no-such-program")); st.ExitCode != 127 {
		t.Errorf("a program that is not there exits %d", st.ExitCode)
	}
}

func TestProcess(t *testing.T) {
	s := newShell(t)
	// An image with a configuration of its own.
	files, err := image.Busybox("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	own, err := image.New(v1.Config{Entrypoint: []string{"echo", "entry"}, Cmd: []string{"cmd"},
		Env: []string{"FROM=image", "BOTH=image"}, WorkingDir: "/var/www", User: "www-data"}, files...)
	if err != nil {
		t.Fatal(err)
	}
	ref := s.Registry.Push(t, "own:1", own)
	s.Pull(t, ref)
	of := func(change func(*container)) func(*container, *security) {
		return func(c *container, _ *security) {
			c.Image.Image = ref
			if change != nil {
				change(c)
			}
		}
	}
	for _, test := range []struct {
		name    string
		change  func(*container, *security)
		command []string
		want    string
	}{
		{"entrypoint and cmd of the image", of(nil), nil, "entry cmd\n"},
		{"args instead of cmd", of(func(c *container) { c.Args = []string{"args"} }), nil, "entry args\n"},
		{"command instead of both", of(nil), []string{"echo", "mine"}, "mine\n"},
		{"command and args", of(func(c *container) { c.Args = []string{"a", "b c"} }), []string{"echo"}, "a b c\n"},
		{"environment of both", of(func(c *container) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "BOTH", Value: []byte("mine")}, {Key: "NEW", Value: []byte("a=b")}}
		}), []string{"sh", "-c", "echo $FROM $BOTH $NEW"}, "image mine a=b\n"},
		{"environment with more than letters", of(func(c *container) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "B", Value: []byte("栗\n=\t\"")}}
		}), []string{"sh", "-c", "echo \"$B\""}, "栗\n=\t\"\n"},
		{"working directory of the image", of(nil), []string{"pwd"}, "/var/www\n"},
		{"working directory that is not there yet", of(func(c *container) { c.WorkingDir = "/made/here" }), []string{"pwd"},
			"/made/here\n"},
		{"user of the image", of(nil), []string{"id"}, "uid=33(www-data) gid=33(www-data) groups=33(www-data)\n"},
		{"user by id", func(_ *container, s *security) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1234} },
			[]string{"sh", "-c", "id -u; id -g"}, "1234\n0\n"},
		{"user by name", func(_ *container, s *security) { s.RunAsUsername = "nobody" }, []string{"sh", "-c", "id -u; id -g"},
			"65534\n65534\n"},
		{"user, group and more groups", func(_ *container, s *security) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &runtimeapi.Int64Value{Value: 1}, &runtimeapi.Int64Value{Value: 2},
				[]int64{3, 4}
		}, []string{"sh", "-c", "id -u; id -g; id -G"}, "1\n2\n2 3 4\n"},
		{"no capability for a user", func(_ *container, s *security) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1} },
			[]string{"grep", "CapEff", "/proc/self/status"}, "CapEff:\t0000000000000000\n"},
		{"HOME", nil, []string{"sh", "-c", "echo $HOME"}, "/root\n"},
		{"HOSTNAME", nil, []string{"sh", "-c", "hostname"}, "shell\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := s.says(t, test.change, test.command...); got != test.want {
				t.Errorf("it says %q, want %q", got, test.want)
			}
		})
	}
}

func TestProcessesThatAreRefused(t *testing.T) {
	s := newShell(t)
	for _, test := range []struct {
		name   string
		change func(*container, *security)
		code   codes.Code
		says   string
	}{
		{"no such program", func(c *container, _ *security) { c.Command = []string{"/bin/no-such"} }, codes.InvalidArgument,
			"no-such"},
		{"no such user", func(_ *container, s *security) { s.RunAsUsername = "nobody-knows" }, codes.InvalidArgument,
			"nobody-knows"},
		{"group without user", func(_ *container, s *security) { s.RunAsGroup = &runtimeapi.Int64Value{Value: 5} },
			codes.InvalidArgument, "run_as_group"},
		{"image that is not here", func(c *container, _ *security) { c.Image.Image = "nobody/has:this" }, codes.NotFound,
			"nobody/has:this"},
		{"no image", func(c *container, _ *security) { c.Image = nil }, codes.InvalidArgument, "image"},
		{"environment name that is Kuri's own", func(c *container, _ *security) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "_KURI_RAW_0", Value: []byte("00")}}
		}, codes.InvalidArgument, "_KURI_RAW_"},
		{"unknown capability to drop", func(_ *container, s *security) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"FLY"}}
		}, codes.InvalidArgument, "FLY"},
		{"relative working directory", func(c *container, _ *security) { c.WorkingDir = "here" }, codes.InvalidArgument,
			"working directory"},
		{"log path that climbs", func(c *container, _ *security) { c.LogPath = "../../../etc/x.log" }, codes.InvalidArgument,
			"log_path"},
		{"host path that is not there", func(c *container, _ *security) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/no/such/path", ContainerPath: "/x"}}
		}, codes.FailedPrecondition, "/no/such/path"},
		{"device that is not there", func(c *container, _ *security) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x", Permissions: "r"}}
		}, codes.FailedPrecondition, "device /dev/no-such is not on this node; is its driver loaded?"},
		{"seccomp profile that is not there", func(_ *container, s *security) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost,
				LocalhostRef: "/no/profile.json"}
		}, codes.NotFound, "/no/profile.json"},
		{"memory too small to start in", func(c *container, _ *security) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1024}
		}, codes.InvalidArgument, "memory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := s.refuses(t, test.change, "true")
			harness.WantError(t, err, test.code, test.says)
		})
	}
}

func TestExitCodesAndTimes(t *testing.T) {
	s := newShell(t)
	for _, test := range []struct {
		command string
		code    int32
		reason  string
	}{
		{"exit 0", 0, "Completed"},
		{"exit 3", 3, "Error"},
		{"exit 255", 255, "Error"},
		{"kill -KILL -1; exit 9", 9, "Error"},
	} {
		before := time.Now()
		id := s.run(t, nil, "sh", "-c", "sleep 0.1; "+test.command)
		st := s.WaitExit(t, id)
		if st.ExitCode != test.code || st.Reason != test.reason {
			t.Errorf("%q: exit code %d, reason %q; want %d, %q", test.command, st.ExitCode, st.Reason, test.code, test.reason)
		}
		created, started, finished := time.Unix(0, st.CreatedAt), time.Unix(0, st.StartedAt), time.Unix(0, st.FinishedAt)
		if created.Before(before) || started.Before(created) || finished.Sub(started) < 100*time.Millisecond ||
			finished.After(time.Now()) {
			t.Errorf("%q: created %v, started %v, finished %v, and the test began %v", test.command, created, started, finished,
				before)
		}
	}
}
