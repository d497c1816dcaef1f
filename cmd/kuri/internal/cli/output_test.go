package cli

import (
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 45 * time.Second: "45s", 119 * time.Second: "119s", 200 * time.Second: "3m20s",
		180 * time.Second:              "3m",
		25*time.Minute + 3*time.Second: "25m", 5*time.Hour + 12*time.Minute: "5h12m", 20 * time.Hour: "20h",
		76 * time.Hour: "3d4h", 40 * 24 * time.Hour: "40d",
	} {
		if got := ShortDuration(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB",
		1<<20 - 1: "1.0 MiB", 5 << 30: "5.0 GiB", 1<<64 - 1: "16.0 EiB"} {
		if got := Size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestOutput(t *testing.T) {
	c, out, _ := newCLI(nil)
	msg := &runtimeapi.Container{Id: "x", Labels: map[string]string{"a": "b"}}
	c.Format = FormatJSON
	if err := c.PrintData(map[string]any{"status": msg,
		"info": UnpackInfo(map[string]string{"pid": "7", "text": "plain", "o": `{"k":[1]}`})}); err != nil {
		t.Fatal(err)
	}
	// Zero values are printed.
	for _, part := range []string{`"state": "CONTAINER_CREATED"`, `"pid": 7`, `"text": "plain"`, `"k": [`} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("%s is not in:\n%s", part, out)
		}
	}
	out.Reset()
	c.Format = FormatYAML
	if err := c.PrintData([]any{msg}); err != nil || !strings.Contains(out.String(), "state: CONTAINER_CREATED") {
		t.Errorf("%v:\n%s", err, out)
	}
	out.Reset()
	if err := Table(out, [][]string{{"A", "B"}, {"evil\x1b[31m\n", ""}}); err != nil ||
		out.String() != "A            B\nevil?[31m?   -\n" {
		t.Errorf("%v: %q", err, out)
	}
}

// Columns stand below each other whatever a cell's characters: wide ones, marks without a width, none at all.
func TestTableColumns(t *testing.T) {
	c, out, _ := newCLI(nil)
	rows := [][]string{{"NAME", "STATE"}, {"日本語", "up"}, {"e\u0301tude", "up"}, {"", "up"}, {"🐳 x", ""},
		{"a\u202eb", "up"}}
	if err := Table(c.Out, rows); err != nil {
		t.Fatal(err)
	}
	want := "NAME     STATE\n日本語   up\ne\u0301tude    up\n-        up\n🐳 x     -\na?b      up\n"
	if out.String() != want {
		t.Errorf("%q, want\n%q", out, want)
	}
	for s, want := range map[string]string{"日本語": "日…", "abcd": "abcd", "abcde": "abc…", "ab語": "ab語", "abc語": "abc…"} {
		if got := Cut(s, 4); got != want || Width(got) > 4 {
			t.Errorf("%s is cut to %s, want %s", s, got, want)
		}
	}
}

func TestTemplates(t *testing.T) {
	list := &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{
		{Id: "1", Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "default", Name: "a"}},
		{Id: "2", Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "shop", Name: "b"}},
	}}
	for format, want := range map[string]string{
		"jsonpath={.items[*].id}":                                "1 2\n",
		"jsonpath=items[1].metadata.name":                        "b\n",
		`jsonpath={range .items[*]}{.id}{"\n"}{end}`:             "1\n2\n",
		`jsonpath={.items[?(@.metadata.namespace=="shop")].id}`:  "2\n",
		"jsonpath={.nothing}":                                    "",
		"go-template={{range .items}}{{.metadata.name}},{{end}}": "a,b,\n",
		"go-template={{len .items}}":                             "2\n",
	} {
		c, out, _ := newCLI(nil)
		c.Format = format
		if err := c.PrintData(list); err != nil || out.String() != want {
			t.Errorf("%s: %q %v, want %q", format, out, err, want)
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0 images", 1: "1 image", 2: "2 images"} {
		if got := Count(n, "image"); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
