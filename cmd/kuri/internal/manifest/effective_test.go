package manifest

import (
	"os"
	"path/filepath"
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
