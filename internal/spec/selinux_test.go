package spec

import (
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
)

func TestLabelOptions(t *testing.T) {
	for _, c := range []struct {
		o    *runtime.SELinuxOption
		want []string
	}{
		{nil, nil},
		{&runtime.SELinuxOption{}, nil},
		{&runtime.SELinuxOption{Level: "s0:c1,c2"}, []string{"level:s0:c1,c2"}},
		{&runtime.SELinuxOption{User: "u", Role: "r", Type: "t", Level: "s0"},
			[]string{"user:u", "role:r", "type:t", "level:s0"}},
	} {
		if got := LabelOptions(c.o); !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.o, got, c.want)
		}
	}
}

// The parts of a context become mount options, so a character that ends an option must be rejected.
func TestCheckSELinux(t *testing.T) {
	for _, c := range []struct {
		o    *runtime.SELinuxOption
		want string // the field that is rejected
	}{
		{nil, ""},
		{&runtime.SELinuxOption{User: "system_u", Role: "system_r", Type: "container.logger_t",
			Level: "s0-s0:c0.c1023"}, ""},
		{&runtime.SELinuxOption{Level: "s0:c1,c2"}, ""},
		{&runtime.SELinuxOption{User: "a:b"}, "user"},
		{&runtime.SELinuxOption{Role: "a b"}, "role"},
		{&runtime.SELinuxOption{Type: `t",nosuid`}, "type"},
		{&runtime.SELinuxOption{Type: "t\x00"}, "type"},
		{&runtime.SELinuxOption{Level: `s0"`}, "level"},
		{&runtime.SELinuxOption{Level: "s0\n"}, "level"},
	} {
		err := checkSELinux("f.", c.o, Node{SELinux: true})
		if (err == nil) != (c.want == "") || err != nil &&
			(fault.Of(err) != fault.Invalid || !strings.HasPrefix(err.Error(), "f.selinux_options."+c.want+": ")) {
			t.Errorf("%v: %v", c.o, err)
		}
	}
	if err := checkSELinux("", &runtime.SELinuxOption{Type: "a b"}, Node{}); err != nil {
		t.Errorf("on a node without SELinux: %v", err)
	}
}

func TestCheckRelabel(t *testing.T) {
	for _, path := range []string{"/", "/usr", "/usr/local/x", "/etc", "/etc/passwd", "/bin", "/lib64", "/proc/1",
		"/sys", "/dev/shm", "/var", "/var/lib", "/var/lib/kubelet", "/var/lib/kuri", "/home", "/root", "/tmp", "/run"} {
		if err := checkRelabel("f", path); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, path := range []string{"/var/lib/kubelet/pods/x/volumes/v", "/tmp/x", "/home/me/data", "/data", "/usrlocal",
		"/var/log/pods", "/run/x"} {
		if err := checkRelabel("f", path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}
