package kubelet

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/test/harness"
)

// TestMetricsLikeContainerd compares a kubelet's metrics of a pod on Kuri with those of the same
// pod on containerd: /metrics/cadvisor, /metrics/resource and /stats/summary, all from the CRI.
// testdata/differences.txt lists each difference with its reason. A difference that is not listed
// fails the test, and so does one that no longer exists.
func TestMetricsLikeContainerd(t *testing.T) {
	if os.Getenv("KURI_KUBELET") == "" {
		t.Skip("KURI_KUBELET is not set: test/kubelet/run builds a kubelet and sets it")
	}
	programs, missing := peer()
	if missing != "" {
		t.Skip(missing)
	}
	registry := harness.NewRegistry(t)
	reference := registry.Push(t, "kuri-web:1", harness.Web(t))
	addAddress(t)
	for way, gates := range map[string][]string{"cri": {"PodAndContainerStatsFromCRI"}} {
		t.Run(way, func(t *testing.T) {
			var told [2]facts
			t.Run("containerd", func(t *testing.T) {
				told[0] = tellAll(t, startContainerd(t, programs, registry), gates, reference)
			})
			t.Run("kuri", func(t *testing.T) {
				certs := t.TempDir()
				harness.Write(t, certs, registry.Host+"/hosts.toml", fmt.Sprintf("server = %q\n", "http://"+registry.Host))
				d := harness.Start(t, harness.Options{NoPods: true,
					Config: fmt.Sprintf("cadvisor_listen = %q\n[image]\ncerts_dirs = [%q]\n", containerdSocket, certs)})
				told[1] = tellAll(t, d, gates, reference)
			})
			if told[0] == nil || told[1] == nil {
				t.Fatal("not both have told something")
			}
			t.Logf("containerd has %d facts, Kuri %d", len(told[0]), len(told[1]))
			compare(way, told[0], told[1]).check(t, way, filepath.Join("testdata", "differences.txt"))
		})
	}
}

// facts has the kubelet's metrics of the pod: names with all labels except those that differ from
// run to run. A value is set only if the pod's manifest determines it; otherwise it is "".
type facts map[string]string

// tellAll runs the pod until the kubelet reports all facts, and removes it.
func tellAll(t *testing.T, d *harness.Daemon, gates []string, reference string) facts {
	t.Helper()
	n := startNode(t, d, nodeOptions{Gates: gates})
	example, err := os.ReadFile(filepath.Join(harness.Repository(), "examples", "web.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	manifest := harness.Write(t, n.manifests, "web.yaml", strings.Replace(string(example), "localhost/kuri-web:1",
		reference, 1))
	n.ready(t, 0)
	var told facts
	steady := 0
	harness.Eventually(t, 3*time.Minute, "the kubelet tells no more than before", func() error {
		time.Sleep(5 * time.Second)
		now, err := n.facts()
		if err != nil {
			return err
		}
		if len(now) > 40 && maps.Equal(now, told) {
			steady++
		} else {
			steady = 0
		}
		if told = now; steady < 4 {
			return fmt.Errorf("%d facts", len(now))
		}
		return nil
	})
	if err := os.Remove(manifest); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, time.Minute, "the pod is gone", func() error {
		if pods, err := n.pods(); err != nil || len(pods) > 0 {
			return fmt.Errorf("%d pods, %v", len(pods), err)
		}
		for _, point := range hierarchies(t) {
			if left, _ := filepath.Glob(filepath.Join(point, cgroupRoot, "kubepods", "*", "pod*")); len(left) > 0 {
				return fmt.Errorf("%s is there", left[0])
			}
		}
		return nil
	})
	return told
}

// decided matches metrics whose values follow from the pod's manifest and its image.
var decided = regexp.MustCompile(`^container_(spec_|threads_max|ulimits_soft)`)

// facts reads the three endpoints.
func (n *node) facts() (facts, error) {
	out := facts{}
	for _, at := range []string{"/metrics/cadvisor", "/metrics/resource"} {
		body, err := n.get(http.MethodGet, at)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(body) {
			out.addMetric(path.Base(at), strings.TrimSpace(line))
		}
	}
	body, err := n.get(http.MethodGet, "/stats/summary")
	if err != nil {
		return nil, err
	}
	var summary struct {
		Node struct{ Runtime any }
		Pods []map[string]any
	}
	if err := json.Unmarshal([]byte(body), &summary); err != nil {
		return nil, err
	}
	out.flatten("summary node.runtime", summary.Node.Runtime)
	for _, p := range summary.Pods {
		if ref, _ := p["podRef"].(map[string]any); ref["name"] == podName {
			out.flatten("summary pod", p)
		}
	}
	return out, nil
}

var (
	metricLine = regexp.MustCompile(`^([a-z_]+)\{(.*)\} (\S+)`)
	label      = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
	hexID      = regexp.MustCompile(`[0-9a-f]{64}`)
)

// addMetric adds a line of metrics if it belongs to the pod. The labels that identify the container
// are the same on all of its lines, so each of them is a separate fact.
func (f facts) addMetric(at, line string) {
	m := metricLine.FindStringSubmatch(line)
	if m == nil || !strings.Contains(m[2], `pod="`+podName+`"`) {
		return
	}
	var labels, of []string
	container := ""
	for _, l := range label.FindAllStringSubmatch(m[2], -1) {
		v := hexID.ReplaceAllString(l[2], "ID")
		switch l[1] {
		case "container":
			container = v
			labels = append(labels, "container="+v)
		case "id", "name", "namespace", "pod":
			of = append(of, l[1]+"="+v)
		case "image": // without the registry, whose port changes each time
			of = append(of, "image="+v[strings.LastIndex(v, "/")+1:])
		case "device", "major", "minor": // they depend on the machine
			labels = append(labels, l[1]+"=DEVICE")
		default:
			labels = append(labels, l[1]+"="+v)
		}
	}
	for _, l := range of {
		f[at+" label container="+container+" "+l] = ""
	}
	value := ""
	if decided.MatchString(m[1]) {
		value = m[3]
	}
	slices.Sort(labels)
	f[at+" "+m[1]+"{"+strings.Join(labels, ",")+"}"] = value
}

// flatten adds the paths of a JSON value. List elements are identified by their names.
func (f facts) flatten(at string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, inner := range v {
			f.flatten(at+"."+k, inner)
		}
	case []any:
		for _, inner := range v {
			name := "*"
			if m, ok := inner.(map[string]any); ok && m["name"] != nil {
				name = fmt.Sprint(m["name"])
			}
			f.flatten(at+"["+name+"]", inner)
		}
	default:
		f[at] = ""
	}
}

// differences has keys "WAY SIDE FACT". SIDE is containerd or kuri for a fact that only one of them
// has, or both if the values differ.
type differences map[string]string

func compare(way string, containerd, kuri facts) differences {
	d := differences{}
	for fact, value := range containerd {
		if other, ok := kuri[fact]; !ok {
			d[way+" containerd "+fact] = value
		} else if other != value {
			d[way+" both "+fact] = fmt.Sprintf("containerd %s, Kuri %s", value, other)
		}
	}
	for fact, value := range kuri {
		if _, ok := containerd[fact]; !ok {
			d[way+" kuri "+fact] = value
		}
	}
	return d
}

// check compares the differences with a list of patterns for a way, one a line, each followed by
// its reason. "*" in a pattern matches any text.
func (d differences) check(t *testing.T, way, file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]int{}
	patterns := map[string]*regexp.Regexp{}
	for line := range strings.Lines(string(data)) {
		pattern, reason, ok := strings.Cut(strings.TrimSpace(line), "  # ")
		if pattern == "" || strings.HasPrefix(pattern, "#") {
			continue
		}
		if !ok || reason == "" {
			t.Errorf("%s: %q has no reason", file, line)
		}
		if !strings.HasPrefix(pattern, way+" ") {
			continue
		}
		used[pattern] = 0
		patterns[pattern] = regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, ".*") + "$")
	}
	for _, one := range slices.Sorted(maps.Keys(d)) {
		known := false
		for pattern, re := range patterns {
			if re.MatchString(one) {
				known = true
				used[pattern]++
			}
		}
		if !known {
			t.Errorf("a difference that is not in %s: %s %s", file, one, d[one])
		}
	}
	for pattern, times := range used {
		if times == 0 {
			t.Errorf("%s has a difference that is gone: %s", file, pattern)
		}
	}
}
