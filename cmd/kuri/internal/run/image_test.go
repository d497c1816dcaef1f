package run

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
)

func TestLooksLikeFile(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"pod", "nginx"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir("busybox", 0o700); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]bool{
		"-": true, "web.yaml": true, "web.yml": true, "web.json": true, "./web": true, "../web": true, "/web": true,
		"pod": true, "pod --rm": true,
		"nginx ls -l": false, "busybox": false, "busybox sh": false, "registry.example/a/b:1": false, "redis": false,
		"redis --port 1": false,
	} {
		list := strings.Fields(args)
		if got := looksLikeFile(list[0], list[1:]); got != want {
			t.Errorf("%q: %t", args, got)
		}
	}
}

func TestParsePublish(t *testing.T) {
	for in, want := range map[string]string{
		"8080:80": "8080-80-TCP-", "127.0.0.1:53:53/udp": "53-53-UDP-127.0.0.1", "[::1]:80:80": "80-80-TCP-::1",
		"8000-8001:80-81": "8000-80-TCP- 8001-81-TCP-",
	} {
		list, err := parsePublish(in)
		var got []string
		for _, p := range list {
			got = append(got, fmt.Sprintf("%d-%d-%s-%s", p.HostPort, p.ContainerPort, p.Protocol, p.HostIP))
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%q: %q %v", in, got, err)
		}
	}
	if list, err := parsePublish("80"); err != nil || len(list) != 1 || list[0].HostPort == 0 {
		t.Errorf("any port of the node: %v %v", list, err)
	}
	for _, in := range []string{"", "x", "80:x", "0:80", "80:0", "99999:80", "1:2:3", "a:80:80", "80:80/icmp",
		"8000-8002:80-81", "81-80:81-80"} {
		if list, err := parsePublish(in); err == nil {
			t.Errorf("%q: %v", in, list)
		}
	}
}

func TestEnvFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "env")
	long := strings.Repeat("x", 100<<10) // longer than the buffer of a bufio.Scanner
	if err := os.WriteFile(file, []byte("# comment\n\n  A=1 \r\nLONG="+long+"\nHERE\nMISSING\nLAST=z"),
		0o600); err != nil {
		t.Fatal(err)
	}
	b := &podBuilder{env: func(name string) string { return map[string]string{"HERE": "node"}[name] }}
	if err := b.variables(&imageOptions{envFiles: []string{file}}); err != nil {
		t.Fatal(err)
	}
	want := []corev1.EnvVar{{Name: "A", Value: "1 "}, {Name: "LONG", Value: long}, {Name: "HERE", Value: "node"},
		{Name: "LAST", Value: "z"}}
	if !reflect.DeepEqual(b.ctr.Env, want) {
		t.Errorf("%d variables: %.200v", len(b.ctr.Env), b.ctr.Env)
	}
}

func TestDockerBytes(t *testing.T) {
	for in, want := range map[string]int64{"64m": 64 << 20, "64M": 64 << 20, "64Mi": 64 << 20, "64mb": 64 << 20,
		"1.5g": 3 << 29, "67108864": 64 << 20, "67108864b": 64 << 20, "2048k": 2 << 20} {
		if q, err := cli.ParseBytes(in); err != nil || q.Value() != want {
			t.Errorf("%q: %d %v", in, q.Value(), err)
		}
	}
	for _, in := range []string{"", "m", "64", "64x", "-1g", "64 m", "9999999t", "1e3000"} {
		if q, err := cli.ParseBytes(in); err == nil {
			t.Errorf("%q: %d", in, q.Value())
		}
	}
}

func TestImagePod(t *testing.T) {
	o := &imageOptions{pull: "missing", grace: -1, volumes: []string{"/x:/y:ro"}, capAdd: []string{"cap_net_raw"},
		stop: "int"}
	if _, err := o.pod("", "registry.example:5000/team/My_App:1", nil, os.Getenv); err == nil {
		t.Error("an image in upper case is taken")
	}
	p, err := o.pod("", "registry.example:5000/team/my_app:1", []string{"echo", "$$"}, os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	if ct := p.Containers()[0]; ct.Name != "my-app" || !strings.HasPrefix(p.Name(), "my-app-") ||
		ct.Pull() != "IfNotPresent" {
		t.Errorf("%s %+v", p.Name(), ct)
	}
	o.stop = "nosuch"
	if _, err := o.pod("", "a", nil, os.Getenv); err == nil || !strings.Contains(err.Error(), "SIGNOSUCH") {
		t.Error(err)
	}
}
