package manifest

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "write the golden files")

// facts returns the facts of a node with all features.
func facts() Facts {
	return Facts{
		UID:         "11111111-2222-3333-4444-555555555555",
		LogsDir:     "/var/log/pods",
		NodeName:    "node-1",
		MemoryTotal: 1 << 30,
		Resolver:    &runtimeapi.DNSConfig{Servers: []string{"192.0.2.1"}, Searches: []string{"example"}, Options: []string{"ndots:1", "rotate"}},
		IPs:         []string{"10.0.0.7", "fd00::7"},
		VolumePaths: map[string]string{"scratch": "/pods/u/volumes/scratch", "fast": "/pods/u/volumes/fast", "zone": "/usr/share/zoneinfo"},
		HostsFile:   "/pods/u/hosts",

		RecursiveReadOnly: true,
	}
}

// decode returns the pods of a file.
func decode(data []byte, name string) ([]*Pod, error) {
	file, err := Decode(data, Options{Name: name})
	if err != nil {
		return nil, err
	}
	return file.Pods, nil
}

func decodeFile(t *testing.T, name string) *Pod {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	pods, err := decode(data, "")
	if err != nil {
		t.Fatal(err)
	}
	return pods[0]
}

// TestTranslation compares the requests to a runtime with testdata/<name>.json. Update these files
// with go test -update, and review them.
func TestTranslation(t *testing.T) {
	for _, name := range []string{"full", "host"} {
		t.Run(name, func(t *testing.T) {
			p, f := decodeFile(t, name), facts()
			var out bytes.Buffer
			write := func(m proto.Message) {
				raw, err := protojson.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				if err := json.Indent(&out, raw, "", "  "); err != nil {
					t.Fatal(err)
				}
				out.WriteByte('\n')
			}
			write(p.Sandbox(f))
			for _, c := range p.Containers() {
				config, err := p.Config(c, Image{ID: "sha256:" + c.Name, Username: "www"}, f)
				if err != nil {
					t.Fatal(err)
				}
				write(config)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(want, out.Bytes()) {
				t.Errorf("differs from %s:\n%s", golden, out.String())
			}
		})
	}
}

// The repository's examples can be run.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../../../examples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples (%v)", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(data, ""); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestVolumesHostsAndTheRest(t *testing.T) {
	p := decodeFile(t, "full")
	group := int64(2000)
	want := []Volume{
		{Name: "scratch", Mode: 0o777, Group: &group},
		{Name: "fast", Memory: true, SizeLimit: 16 << 20, Mode: 0o1770, Group: &group},
		{Name: "zone", HostPath: "/usr/share/zoneinfo", Type: corev1.HostPathDirectory},
	}
	if got, err := p.Volumes(facts()); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("volumes %+v, want %+v (%v)", got, want, err)
	}
	hosts := string(p.Hosts(facts(), []byte("not used")))
	for _, line := range []string{"127.0.0.1\tlocalhost\n", "10.0.0.7\tcounter\n", "fd00::7\tcounter\n", "192.0.2.1\tdb\tdb.shop.example\n"} {
		if !strings.Contains(hosts, line) {
			t.Errorf("%q is not in the hosts file:\n%s", line, hosts)
		}
	}
	if p.Handler() != "crun" || p.GraceSeconds() != 7 || !p.NeedsHosts() || !p.NeedsResolver() {
		t.Errorf("%q %d %t %t", p.Handler(), p.GraceSeconds(), p.NeedsHosts(), p.NeedsResolver())
	}
	var pulls []Pull
	for _, c := range p.Containers() {
		pulls = append(pulls, c.Pull())
	}
	if want := []Pull{PullMissing, PullMissing, PullAlways, PullAlways}; !slices.Equal(pulls, want) {
		t.Errorf("pull %v, want %v", pulls, want)
	}
	if got := p.Containers()[2].Ports(); !slices.Equal(got, []string{"8080→80/TCP", "53/UDP"}) {
		t.Errorf("ports %v", got)
	}
	if want := []string{"spec.dnsPolicy is ignored: there is no cluster DNS, the pod gets the node's resolver"}; !slices.Equal(p.Warnings, want) {
		t.Errorf("warnings %q", p.Warnings)
	}
}

// pod returns a small manifest with more lines in its spec and in its container.
func pod(spec, container string) string {
	out := "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n"
	for line := range strings.Lines(spec) {
		out += "  " + strings.TrimRight(line, "\n") + "\n"
	}
	out += "  containers:\n  - name: c\n    image: i:1\n"
	for line := range strings.Lines(container) {
		out += "    " + strings.TrimRight(line, "\n") + "\n"
	}
	return out
}

func TestDocuments(t *testing.T) {
	one := pod("", "")
	two := strings.Replace(one, "name: p", "name: q", 1)
	for _, tt := range []struct {
		name, data, override string
		want                 []string
		err                  string
	}{
		{name: "one", data: one, want: []string{"p"}},
		{name: "two", data: "# first\n" + one + "---\n# second\n" + two + "---\n", want: []string{"p", "q"}},
		{name: "comment on the marker", data: "--- # x\n" + one, want: []string{"p"}},
		{name: "JSON", data: `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j"},"spec":{"containers":[{"name":"c","image":"i"}]}}`, want: []string{"j"}},
		{name: "renamed", data: one, override: "r", want: []string{"r"}},
		{name: "generated name, no name", data: strings.Replace(one, "name: p", "generateName: P-", 1), err: "metadata.generateName: \"P-\": a lowercase"},
		{name: "generated name, renamed", data: strings.Replace(one, "name: p", "generateName: p-", 1), override: "r", want: []string{"r"}},
		{name: "two of a name", data: one + "---\n" + one, err: "default/p is there twice"},
		{name: "one name for two", data: one + "---\n" + two, override: "r", err: "a name was given for 2 pods"},
		{name: "all that are wrong, the first", data: strings.Replace(one, "name: c", "name: C", 1) + "---\n" + strings.Replace(two, "spec:\n", "spec:\n  hostname: A_\n", 1), err: "document 1 of 2: spec.containers[0].name: \"C\""},
		{name: "all that are wrong, the last", data: strings.Replace(one, "name: c", "name: C", 1) + "---\n" + strings.Replace(two, "spec:\n", "spec:\n  hostname: A_\n", 1), err: "\ndocument 2 of 2: spec.hostname: \"A_\""},
		{name: "which one is wrong", data: one + "---\nkind: x\n", err: "document 2 of 2"},
		{name: "too large", data: strings.Repeat("#", maxSize+1), err: "at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pods, err := decode([]byte(tt.data), tt.override)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, p := range pods {
				names = append(names, p.Name())
			}
			if !slices.Equal(names, tt.want) {
				t.Errorf("pods %v, want %v", names, tt.want)
			}
		})
	}
}

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "1", "B": "$(A)", "E": ""}
	for in, want := range map[string]string{
		"":         "",
		"a":        "a",
		"$(A)":     "1",
		"x$(A)y":   "x1y",
		"$(B)":     "$(A)", // a value is not expanded again
		"$(E)":     "",
		"$(NO)":    "$(NO)",
		"$$(A)":    "$(A)",
		"$$$(A)":   "$1",
		"$$$$(A)":  "$$(A)",
		"$":        "$",
		"$$":       "$",
		"$A":       "$A",
		"$(A":      "$(A",
		"$(A $(A)": "$(A $(A)",
		"$()":      "$()",
	} {
		if got := expand(in, values); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestResources(t *testing.T) {
	const node = 1000 << 20
	list := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	for _, tt := range []struct {
		name             string
		requests, limits corev1.ResourceList
		want             *runtimeapi.LinuxContainerResources
	}{
		{"nothing", nil, nil, &runtimeapi.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000}},
		{"requests", list("500m", "100Mi"), nil, &runtimeapi.LinuxContainerResources{CpuShares: 512, OomScoreAdj: 900}},
		{"limits are requests too", nil, list("2", "100Mi"), &runtimeapi.LinuxContainerResources{CpuShares: 2048, CpuPeriod: 100000, CpuQuota: 200000, MemoryLimitInBytes: 100 << 20, OomScoreAdj: -997}},
		{"burstable", list("1m", "1Mi"), list("5m", ""), &runtimeapi.LinuxContainerResources{CpuShares: 2, CpuPeriod: 100000, CpuQuota: 1000, OomScoreAdj: 999}},
		{"all of the memory", list("", "2Gi"), nil, &runtimeapi.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 3}},
		{"many CPUs", list("1000", ""), nil, &runtimeapi.LinuxContainerResources{CpuShares: 262144, OomScoreAdj: 999}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: tt.requests, Limits: tt.limits}}}}}
			got := linuxResources(pod, &pod.Spec.Containers[0], node)
			if !proto.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestUsers(t *testing.T) {
	id := func(n int64) *int64 { return &n }
	for _, tt := range []struct {
		name      string
		container string
		image     Image
		user      *int64
		username  string
		err       string
	}{
		{name: "the image's own", image: Image{UID: id(7)}},
		{name: "given", container: "runAsUser: 5", user: id(5)},
		{name: "a group needs the image's uid", container: "runAsGroup: 5", image: Image{UID: id(7)}, user: id(7)},
		{name: "a group needs the image's name", container: "runAsGroup: 5", image: Image{Username: "www"}, username: "www"},
		{name: "a group and an image without user", container: "runAsGroup: 5", user: id(0)},
		{name: "non-root uid", container: "runAsNonRoot: true", image: Image{UID: id(7)}},
		{name: "root image", container: "runAsNonRoot: true", image: Image{UID: id(0)}, err: "the image runs as root"},
		{name: "image without user", container: "runAsNonRoot: true", err: "the image runs as root"},
		{name: "unknown name", container: "runAsNonRoot: true", image: Image{Username: "www"}, err: `user "www"`},
		{name: "name overruled", container: "runAsNonRoot: true, runAsUser: 5", image: Image{Username: "www"}, user: id(5)},
		{name: "root asked for", container: "runAsNonRoot: true, runAsUser: 0", err: "runAsUser is 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pods, err := decode([]byte(pod("", "securityContext: {"+tt.container+"}")), "")
			if err != nil {
				t.Fatal(err)
			}
			config, err := pods[0].Config(pods[0].Containers()[0], tt.image, facts())
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			sc := config.Linux.SecurityContext
			if (sc.RunAsUser == nil) != (tt.user == nil) || tt.user != nil && sc.RunAsUser.Value != *tt.user || sc.RunAsUsername != tt.username {
				t.Errorf("user %v %q", sc.RunAsUser, sc.RunAsUsername)
			}
		})
	}
}

func TestLongNames(t *testing.T) {
	name := strings.Repeat("a", 62) + ".b"
	pods, err := decode([]byte(pod("", "")), name)
	if err != nil {
		t.Fatal(err)
	}
	if h := pods[0].Sandbox(facts()).Hostname; h != strings.Repeat("a", 62) {
		t.Errorf("host name %q", h)
	}
}

// Decode returns for all input, and every accepted pod can be translated.
func FuzzDecode(f *testing.F) {
	for _, name := range []string{"full", "host"} {
		data, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(pod("volumes: [{name: v, emptyDir: {sizeLimit: 1e99}}]", "resources: {limits: {cpu: 9e18}}")))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: s}\nspec:\n  volumeClaimTemplates: [{metadata: {name: d}}]\n  template:\n    spec:\n      containers: [{name: c, image: i, envFrom: [{secretRef: {name: k}}], volumeMounts: [{name: d, mountPath: /d, subPathExpr: $(A)}]}]\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: k}\ndata: {A: Yg==}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pods, err := decode(data, "")
		if err != nil {
			return
		}
		for _, p := range pods {
			facts := facts()
			volumes, err := p.Volumes(facts)
			if err != nil {
				t.Errorf("volumes: %v", err)
			}
			for _, v := range volumes {
				facts.VolumePaths[v.Name] = "/v"
				for _, f := range v.Files {
					if !filepath.IsLocal(f.Path) {
						t.Errorf("file %q of volume %s", f.Path, v.Name)
					}
				}
				if v.Claim != "" && (!filepath.IsLocal(v.Claim) || strings.Contains(v.Claim, "/")) {
					t.Errorf("claim %q", v.Claim)
				}
			}
			if s := p.Sandbox(facts); strings.Count(strings.TrimPrefix(s.LogDirectory, facts.LogsDir), "/") != 1 {
				t.Errorf("log directory %q", s.LogDirectory)
			}
			p.Hosts(facts, nil)
			for _, c := range p.Containers() {
				if strings.Contains(c.Name, "..") || strings.Contains(c.Name, "/") {
					t.Errorf("container %q", c.Name)
				}
				c.Pull()
				c.Ports()
				subs, _ := p.SubPaths(c, facts) // fails only for an unknown variable
				for _, sub := range subs {
					if !filepath.IsLocal(sub.Path) {
						t.Errorf("subPath %q", sub.Path)
					}
				}
				p.Config(c, Image{}, facts) // fails only for a user that is not allowed
			}
		}
	})
}
