package manifest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// template returns a controller of a kind with more lines in its spec.
func template(apiVersion, kind, spec string) string {
	out := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: web, namespace: shop}\nspec:\n", apiVersion, kind)
	for line := range strings.Lines(spec) {
		out += "  " + strings.TrimRight(line, "\n") + "\n"
	}
	return out + `  template:
    metadata: {labels: {app: web}, annotations: {note: x}, creationTimestamp: null}
    spec:
      restartPolicy: Never
      containers: [{name: c, image: "i:1"}]
`
}

// An object with a pod template is one pod, with a warning about what its controller would do in
// addition.
func TestTemplates(t *testing.T) {
	for _, tt := range []struct {
		name, manifest string
		pod            string   // "" if it is skipped
		words          []string // parts of the warnings, or of the error if it is skipped
	}{
		{"deployment", template("apps/v1", "Deployment",
			"replicas: 3\nselector: {matchLabels: {app: web}}\nstrategy: {type: Recreate}"), "web",
			[]string{"one pod of the Deployment is run where its replicas are 3"}},
		{"deployment of one", template("apps/v1", "Deployment", ""), "web",
			[]string{"the pod of the Deployment is run once, and nothing replaces it"}},
		{"deployment of none", template("apps/v1", "Deployment", "replicas: 0"), "",
			[]string{"Deployment web is passed over: its replicas are 0"}},
		{"replica set", template("apps/v1", "ReplicaSet", "replicas: 2"), "web", []string{"one pod of the ReplicaSet"}},
		{"replication controller", template("v1", "ReplicationController", "replicas: 2\nselector: {app: web}"), "web",
			[]string{"one pod of the ReplicationController"}},
		{"daemon set", template("apps/v1", "DaemonSet", "selector: {matchLabels: {app: web}}"), "web",
			[]string{"the pod of the DaemonSet is run once"}},
		{"job", template("batch/v1", "Job", "completions: 4\nparallelism: 2\nbackoffLimit: 3\nactiveDeadlineSeconds: 9"),
			"web", []string{"one pod of the Job is run where its completions are 4", "spec.activeDeadlineSeconds is ignored"}},
		{"job that waits", template("batch/v1", "Job", "suspend: true"), "",
			[]string{"Job web is passed over: it is suspended"}},
		{"stateful set", template("apps/v1", "StatefulSet",
			"serviceName: web\nvolumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]"), "web-0",
			[]string{"the pod of the StatefulSet is run once", "the claim data-web-0 is a directory of this node"}},
		{"its field is named where it stands", strings.Replace(template("apps/v1", "Deployment", ""), "containers:",
			"nodeName: here\n      containers:", 1), "web", []string{"the pod of", "spec.template.spec.nodeName is ignored"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file, err := Decode([]byte(tt.manifest), Options{})
			if tt.pod == "" {
				if err == nil || !strings.Contains(err.Error(), tt.words[0]) {
					t.Errorf("error %v, want one with %q", err, tt.words[0])
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			p := file.Pods[0]
			if p.Namespace() != "shop" || p.Name() != tt.pod || p.api.Labels["app"] != "web" ||
				p.api.Annotations["note"] != "x" {
				t.Errorf("pod %s/%s %v %v", p.Namespace(), p.Name(), p.api.Labels, p.api.Annotations)
			}
			if len(p.Warnings) != len(tt.words) {
				t.Fatalf("warnings %q, want %q", p.Warnings, tt.words)
			}
			for i, w := range tt.words {
				if !strings.Contains(p.Warnings[i], w) {
					t.Errorf("warning %q, want one with %q", p.Warnings[i], w)
				}
			}
			refs, err := Refs([]byte(tt.manifest), "")
			if err != nil || len(refs) != 1 || refs[0].Namespace != "shop" || refs[0].Name != tt.pod {
				t.Errorf("refs %+v (%v)", refs, err)
			}
			if tt.name == "stateful set" && !slices.Equal(refs[0].Claims, []string{"data-web-0"}) {
				t.Errorf("claims %q", refs[0].Claims)
			}
		})
	}
	bad := strings.Replace(template("apps/v1", "Deployment", ""), "image: \"i:1\"", "imagee: x", 1)
	if _, err := Decode([]byte(bad), Options{}); err == nil ||
		!strings.Contains(err.Error(), `unknown field "spec.template.spec.containers[0].imagee"`) {
		t.Errorf("error %v", err)
	}
	wrong := strings.Replace(template("apps/v1", "Deployment", ""), "name: c,", "name: C,", 1)
	if _, err := Decode([]byte(wrong), Options{}); err == nil ||
		!strings.Contains(err.Error(), `spec.template.spec.containers[0].name: "C"`) {
		t.Errorf("error %v", err)
	}
}

const configured = `apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: settings}
  data: {MODE: fast, page.html: <html>}
  binaryData: {raw: AAH/}
- apiVersion: v1
  kind: Secret
  metadata: {name: keys, namespace: default}
  type: Opaque
  data: {TOKEN: c2VjcmV0}
  stringData: {PLAIN: as it is}
- {apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}
- {apiVersion: example.org/v1, kind: Widget, metadata: {name: w}, spec: {anything: goes}}
- apiVersion: v1
  kind: Pod
  metadata: {name: p, labels: {b: "2", a: "1"}}
  spec:
    restartPolicy: Never
    securityContext: {fsGroup: 2000}
    volumes:
    - {name: config, configMap: {name: settings, defaultMode: 0400}}
    - {name: one, secret: {secretName: keys, items: [{key: TOKEN, path: deep/token, mode: 0440}]}}
    - {name: may, configMap: {name: absent, optional: true}}
    - name: all
      projected:
        defaultUser: 7
        sources:
        - configMap: {name: settings, items: [{key: MODE, path: mode}]}
        - secret: {name: keys, items: [{key: PLAIN, path: plain}]}
        - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: memory, resourceFieldRef: {containerName: c, resource: limits.memory, divisor: 1Mi}}]}
    - {name: data, persistentVolumeClaim: {claimName: data, readOnly: true}}
    - {name: short, ephemeral: {volumeClaimTemplate: {spec: {resources: {requests: {storage: 1Gi}}}}}}
    containers:
    - name: c
      image: i:1
      resources: {limits: {memory: 64Mi}, requests: {cpu: 250m}}
      ports: [{name: http, containerPort: 8080}]
      envFrom: [{configMapRef: {name: settings}}, {prefix: S_, secretRef: {name: keys}}]
      env:
      - {name: MODE, value: "$(MODE)er"}
      - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: TOKEN}}}
      - {name: NOT, valueFrom: {configMapKeyRef: {name: settings, key: absent, optional: true}}}
      - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
      - {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
      - {name: NODE, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
      volumeMounts:
      - {name: config, mountPath: /config}
      - {name: config, mountPath: /page.html, subPath: page.html}
      - {name: short, mountPath: /logs, subPathExpr: "$(MODE)/logs"}
      - {name: data, mountPath: /data}
      lifecycle:
        preStop: {httpGet: {port: http, path: /bye}}
`

// TestConfigured follows the values of ConfigMaps, Secrets and fields to the variables and files of
// a pod.
func TestConfigured(t *testing.T) {
	file, err := Decode([]byte(configured), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"Service web is passed over: a pod is reached",
		"Widget w is passed over: kuri run makes pods only"}; len(file.Notes) != 2 ||
		!strings.HasPrefix(file.Notes[0], want[0]) || file.Notes[1] != want[1] {
		t.Errorf("notes %q", file.Notes)
	}
	p, f := file.Pods[0], facts()
	f.CPUs, f.NodeIPs = 4, []string{"192.0.2.9"}
	if len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "the claim data is a directory of this node") {
		t.Errorf("warnings %q", p.Warnings)
	}
	volumes, err := p.Volumes(f)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	f.VolumePaths = map[string]string{}
	for _, v := range volumes {
		f.VolumePaths[v.Name] = "/pods/" + v.Name
		got = append(got, fmt.Sprintf("%s %t %t %q", v.Name, v.Memory, v.ReadOnly, v.Claim))
		for _, file := range v.Files {
			got = append(got, fmt.Sprintf("  %s %#o %d %q", file.Path, file.Mode, file.User, file.Data))
		}
	}
	want := []string{
		`config false true ""`, `  MODE 0400 0 "fast"`, `  page.html 0400 0 "<html>"`, `  raw 0400 0 "\x00\x01\xff"`,
		`one true true ""`, `  deep/token 0440 0 "secret"`,
		`may false true ""`,
		`all true true ""`, `  labels 0644 7 "a=\"1\"\nb=\"2\""`, `  memory 0644 7 "64"`, `  mode 0644 7 "fast"`,
		`  plain 0644 7 "as it is"`,
		`data false true "data"`, `short false false ""`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("volumes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	c := p.Containers()[0]
	subs, err := p.SubPaths(c, f)
	if wantSubs := []SubPath{{1, "config", "page.html"}, {2, "short", "faster/logs"}}; err != nil ||
		!slices.Equal(subs, wantSubs) {
		t.Errorf("subPaths %+v (%v)", subs, err)
	}
	f.SubPaths = map[int]string{1: "/pods/sub/1", 2: "/pods/sub/2"}
	config, err := p.Config(c, Image{ID: "sha256:x"}, f)
	if err != nil {
		t.Fatal(err)
	}
	var env []string
	for _, e := range config.Envs {
		env = append(env, e.Key+"="+string(e.Value))
	}
	wantEnv := []string{"MODE=faster", "page.html=<html>", "raw=\x00\x01\xff", "S_PLAIN=as it is", "S_TOKEN=secret",
		"TOKEN=secret", "CPU=250", "CPUS=4", "NODE=192.0.2.9"}
	if !slices.Equal(env, wantEnv) {
		t.Errorf("env %q, want %q", env, wantEnv)
	}
	var mounts []string
	for _, m := range config.Mounts[:4] {
		mounts = append(mounts, fmt.Sprintf("%s:%s:%t", m.HostPath, m.ContainerPath, m.Readonly))
	}
	if want := []string{"/pods/config:/config:true", "/pods/sub/1:/page.html:true", "/pods/sub/2:/logs:false",
		"/pods/data:/data:true"}; !slices.Equal(mounts, want) {
		t.Errorf("mounts %q", mounts)
	}
	if hook := PreStop(config.Annotations); hook != `{"httpGet":{"path":"/bye","port":8080}}` {
		t.Errorf("hook %s", hook)
	}
}

// ConfigMaps and Secrets can also come from other files. Problems in those are reported.
func TestConfigFiles(t *testing.T) {
	needs := pod("", "envFrom: [{configMapRef: {name: m}}, {secretRef: {name: s}}]")
	m := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {A: b}\n"
	s := "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {C: d}\n"
	for _, tt := range []struct {
		name  string
		files []string
		err   string
	}{
		{"two files", []string{m, s}, ""},
		{"one file with both", []string{m + "---\n" + s}, ""},
		{"one is not there", []string{m}, `there is no Secret "s"`},
		{"twice", []string{m, m + "---\n" + s}, "file 1: document 1 of 2: the ConfigMap m is there twice"},
		{"another namespace", []string{m, strings.Replace(s, "name: s", "name: s, namespace: x", 1)},
			`there is no Secret "s"`},
		{"nothing in it", []string{needs}, "file 0: there is no ConfigMap and no Secret in it"},
		{"no base64", []string{strings.Replace(s, "stringData: {C: d}", "data: {C: plain text}", 1)},
			"Secret s: data[C] is not base64: encode it, or write it as it is into stringData"},
		{"a number", []string{strings.Replace(m, "A: b", "A: 8080", 1)},
			`ConfigMap m: data[A]: expected text, and it is a number: write it in quotes, "8080"`},
		{"a key that is a path", []string{strings.Replace(m, "A: b", "a/b: c", 1)},
			"data[a/b]: a valid config key must consist of"},
		{"without a name", []string{strings.Replace(m, "{name: m}", "{}", 1)}, "a ConfigMap needs a name"},
		{"an unknown field", []string{m + "datta: {}\n"}, `unknown field "datta"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := Options{}
			for i, data := range tt.files {
				o.Configs = append(o.Configs, Config{fmt.Sprint("file ", i), []byte(data)})
			}
			_, err := Decode([]byte(needs), o)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want one with %q", err, tt.err)
			}
			if err != nil && (strings.Contains(err.Error(), "illegal base64") || strings.Contains(err.Error(), "regex")) {
				t.Errorf("a library's words: %v", err)
			}
		})
	}
	sub := m + "---\n" + pod("volumes: [{name: v, configMap: {name: m}}]",
		"volumeMounts: [{name: v, mountPath: /a, subPath: B}]")
	if _, err := Decode([]byte(sub), Options{}); err == nil ||
		!strings.Contains(err.Error(), `spec.containers[0].volumeMounts[0].subPath: the volume v has no file "B": it has A`) {
		t.Errorf("error %v", err)
	}
	key := m + "---\n" + pod("", "env: [{name: X, valueFrom: {configMapKeyRef: {name: m, key: B}}}]")
	if _, err := Decode([]byte(key), Options{}); err == nil ||
		!strings.Contains(err.Error(), `the ConfigMap "m" has no key "B": it has A`) {
		t.Errorf("error %v", err)
	}
}
