package manifest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// The effective manifest of a pod is complete: it is translated to the same requests, without a warning that a
// field is ignored.
func TestEffectiveIsTheSamePod(t *testing.T) {
	const odd = `
imagePullSecrets: [{name: x}]
nodeSelector: {a: b}
dnsPolicy: ClusterFirst
restartPolicy: Always
initContainers:
- {name: i, image: "i:1", restartPolicy: Always, readinessProbe: {exec: {command: [x]}}}
securityContext: {seccompProfile: {type: Unconfined}, seLinuxChangePolicy: Recursive}`
	files := map[string]string{
		"odd": pod(strings.TrimSpace(odd), "livenessProbe: {exec: {command: [x]}}\nresources: {limits: {cpu: 1, memory: 64Mi}, requests: {cpu: 500m}}"),
		"job": template("batch/v1", "Job", "completionMode: Indexed"),
		"all": configured,
	}
	for _, name := range []string{"full", "host"} {
		data, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(data)
	}
	for name, text := range files {
		t.Run(name, func(t *testing.T) {
			first, err := decode([]byte(text), "")
			if err != nil {
				t.Fatal(err)
			}
			raw, err := yaml.Marshal(first[0].Effective())
			if err != nil {
				t.Fatal(err)
			}
			file, err := Decode(raw, Options{Configs: []Config{{Path: "all", Data: []byte(configured)}}})
			if err != nil {
				t.Fatalf("%v in\n%s", err, raw)
			}
			again := file.Pods[0]
			for _, w := range again.Warnings {
				if strings.Contains(w, "is ignored") && !strings.Contains(w, "imagePullSecrets") {
					t.Errorf("it warns: %s", w)
				}
			}
			requests := func(p *Pod) []proto.Message {
				f := facts()
				for _, v := range p.api.Spec.Volumes {
					f.VolumePaths[v.Name] = "/pods/" + v.Name
				}
				f.NodeIPs = []string{"192.0.2.9"}
				out := []proto.Message{p.Sandbox(f)}
				for _, c := range p.Containers() {
					config, err := p.Config(c, Image{ID: "sha256:" + c.Name}, f)
					if err != nil {
						t.Fatal(err)
					}
					out = append(out, config)
				}
				return out
			}
			want, got := requests(first[0]), requests(again)
			for i := range want {
				if !proto.Equal(got[i], want[i]) {
					t.Errorf("request %d is\n%v\nwant\n%v\nfor\n%s", i, got[i], want[i], raw)
				}
			}
			if e := again.Effective(); e.Spec.RestartPolicy != corev1.RestartPolicyNever || e.Spec.TerminationGracePeriodSeconds == nil || e.Spec.Containers[0].ImagePullPolicy == "" {
				t.Errorf("defaults are missing in\n%s", raw)
			}
		})
	}
}

// A generateName becomes a name, each time another one, wherever the name of the pod comes from.
func TestGenerateName(t *testing.T) {
	for _, tt := range []struct{ manifest, form string }{
		{strings.Replace(pod("restartPolicy: Never", ""), "name: p", "generateName: p-", 1), `^p-[a-z0-9]{5}$`},
		{strings.Replace(template("apps/v1", "StatefulSet", ""), "name: web,", "generateName: web-,", 1), `^web-[a-z0-9]{5}-0$`},
		{strings.Replace(template("batch/v1", "Job", ""), "name: web,", "generateName: "+strings.Repeat("x", 70)+",", 1), `^x{58}[a-z0-9]{5}$`},
	} {
		names := map[string]bool{}
		for range 3 {
			pods, err := decode([]byte(tt.manifest), "")
			if err != nil {
				t.Fatal(err)
			}
			names[pods[0].Name()] = true
			if !regexp.MustCompile(tt.form).MatchString(pods[0].Name()) {
				t.Errorf("name %q, want %s", pods[0].Name(), tt.form)
			}
			if job, has := pods[0].api.Labels["job-name"]; has && job != pods[0].Name() {
				t.Errorf("the Job's label is %q, and its pod %q", job, pods[0].Name())
			}
			if m := pods[0].Effective().Metadata; m.GenerateName != "" || m.Name != pods[0].Name() {
				t.Errorf("the effective manifest has %+v", m)
			}
		}
		if len(names) < 2 {
			t.Errorf("three times the name %v", names)
		}
		refs, err := Refs([]byte(tt.manifest), "")
		if err != nil || len(refs) != 1 || refs[0].GenerateName == "" {
			t.Errorf("refs %+v (%v)", refs, err)
		}
		if refs, err = Refs([]byte(tt.manifest), "mine"); err != nil || refs[0].GenerateName != "" || refs[0].Name != "mine" {
			t.Errorf("with a name, refs %+v (%v)", refs, err)
		}
	}
	given := strings.Replace(pod("", ""), "name: p", "name: p, generateName: q-", 1)
	if refs, err := Refs([]byte(given), ""); err != nil || refs[0].GenerateName != "" || refs[0].Name != "p" {
		t.Errorf("with both, refs %+v (%v)", refs, err)
	}
}
