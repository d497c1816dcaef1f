package cli

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSecondsOfDoNotOverflow(t *testing.T) {
	for n, want := range map[float64]time.Duration{0: 0, 1.5: 1500 * time.Millisecond, 1e10: math.MaxInt64,
		1e300: math.MaxInt64, 9e9: 9_000_000_000 * time.Second} {
		if got := Seconds(n); got != want {
			t.Errorf("%g seconds are %d ns, want %d", n, got, want)
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
		{name: "file", content: "runtime-endpoint: unix:///f\ntimeout: 7\ndebug: true\n",
			want: settings{Runtime: "unix:///f", Image: "unix:///f", Timeout: 7 * time.Second}},
		{name: "duration", content: "timeout: 1m\n", want: settings{Runtime: defaultEndpoint, Image: defaultEndpoint,
			Timeout: time.Minute}},
		{name: "seconds as text", content: "timeout: \"9\"\n",
			want: settings{Runtime: defaultEndpoint, Image: defaultEndpoint, Timeout: 9 * time.Second}},
		{name: "environment before file", content: "runtime-endpoint: unix:///f\nimage-endpoint: unix:///g\n",
			env:  map[string]string{"CONTAINER_RUNTIME_ENDPOINT": "unix:///e"},
			want: settings{Runtime: "unix:///e", Image: "unix:///g", Timeout: defaultTimeout}},
		{name: "flag before environment", env: map[string]string{"CONTAINER_RUNTIME_ENDPOINT": "unix:///e",
			"IMAGE_SERVICE_ENDPOINT": "unix:///h"},
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
			got, err := c.Settings()
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
	if _, err := c.Settings(); err == nil {
		t.Error("a file that was named and is not there is no error")
	}
}
