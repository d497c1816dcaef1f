package manifest

import (
	"slices"
	"strings"
	"testing"
)

const people = `apiVersion: batch/v1
kind: CronJob
metadata: {name: tidy}
spec:
  schedule: "*/5 * * * *"
  concurrencyPolicy: Forbid
  jobTemplate:
    spec:
      activeDeadlineSeconds: 100
      template:
        spec:
          restartPolicy: OnFailure
          imagePullSecrets: [{name: registry}]
          activeDeadlineSeconds: 60
          containers: [{name: c, image: "i:1", volumeMounts: [{name: work, mountPath: /work}]}]
          volumes:
          - name: work
            emptyDir:
`

// TestWhatPeopleHave has manifests as they are found, and what becomes of each.
func TestWhatPeopleHave(t *testing.T) {
	role := func(names ...string) string {
		var out strings.Builder
		for _, n := range names {
			out.WriteString("---\napiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: " + n + "}\nrules: []\n")
		}
		return out.String()
	}
	for _, tt := range []struct {
		name, manifest string
		pods           []string
		words          []string // parts of the warnings and notes, or of the error if there are no pods
		not            string   // not a part of them
	}{
		{name: "a CronJob", manifest: people, pods: []string{"tidy"}, words: []string{
			`the pod of the CronJob is run once and now: nothing keeps its schedule, "*/5 * * * *"`,
			"spec.jobTemplate.spec.template.spec.activeDeadlineSeconds is ignored: nothing stops the pod",
			`spec.jobTemplate.spec.template.spec.imagePullSecrets[0] is ignored: there is no Secret "registry" in the file: put it there, or name its file with --secret`,
		}},
		{name: "a CronJob that waits", manifest: strings.Replace(people, "spec:\n", "spec:\n  suspend: true\n", 1), words: []string{"CronJob tidy is passed over: it is suspended"}},
		{name: "a CronJob of old", manifest: strings.Replace(people, "batch/v1", "batch/v1beta1", 1), words: []string{"a CronJob is of apiVersion batch/v1"}},
		{name: "a field in a CronJob", manifest: strings.Replace(people, "{name: c,", "{name: C,", 1), words: []string{`spec.jobTemplate.spec.template.spec.containers[0].name: "C"`}},
		{name: "with CRLF and a BOM", manifest: "\ufeff" + strings.ReplaceAll(people, "\n", "\r\n"), pods: []string{"tidy"}},
		{name: "between comments and nothing", manifest: "# a\n---\n---\n# b\n" + people + "---\n\n--- # c\n", pods: []string{"tidy"}},
		{name: "a list of nothing", manifest: "apiVersion: v1\nkind: List\nitems:\n", words: []string{"the manifest is empty"}},
		{name: "a list with a page number", manifest: "apiVersion: v1\nkind: PodList\nmetadata: {resourceVersion: \"7\"}\nitems:\n- metadata: {name: a}\n  spec: {containers: [{name: c, image: i}]}\n", pods: []string{"a"}},
		{name: "a chart", manifest: strings.Replace(people, "name: tidy", "name: {{ .Release.Name }}-tidy", 1), words: []string{"not YAML", "it looks like a template of Helm"}},
		{name: "a chart that is YAML", manifest: strings.Replace(people, "name: tidy", `name: "{{.Name}}"`, 1), words: []string{`metadata.name: "{{.Name}}"`, "render it first (helm template)"}},
		{name: "no chart", manifest: strings.Replace(people, "name: tidy", "name: A", 1), words: []string{"metadata.name"}, not: "helm"},
		{name: "a few roles", manifest: people + role("a", "b"), pods: []string{"tidy"}, words: []string{"Role a is passed over: there is no API server", "Role b is passed over"}},
		{name: "many roles", manifest: people + role("a", "b", "c", "d", "e"), pods: []string{"tidy"}, words: []string{"5 objects of the kind Role are passed over: there is no API server"}, not: "Role b"},
		{name: "roles only", manifest: role("a", "b", "c", "d", "e"), words: []string{"it has 5 objects of the kind Role\n5 objects of the kind Role are passed over"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file, err := Decode([]byte(tt.manifest), Options{})
			var names, said []string
			if err != nil {
				said = append(said, err.Error())
			} else {
				said = append(said, file.Notes...)
				for _, p := range file.Pods {
					names, said = append(names, p.Name()), append(said, p.Warnings...)
				}
			}
			if !slices.Equal(names, tt.pods) {
				t.Fatalf("pods %q (%v), want %q", names, err, tt.pods)
			}
			all := strings.Join(said, "\n")
			for _, w := range tt.words {
				if !strings.Contains(all, w) {
					t.Errorf("%q is missing in\n%s", w, all)
				}
			}
			if tt.not != "" && strings.Contains(all, tt.not) {
				t.Errorf("%q is in\n%s", tt.not, all)
			}
		})
	}
}

// The pod of a controller has what the controller would give to its first pod.
func TestFirstPod(t *testing.T) {
	read := func(manifest string) *Pod {
		t.Helper()
		file, err := Decode([]byte(manifest), Options{})
		if err != nil {
			t.Fatal(err)
		}
		return file.Pods[0]
	}
	p := read(template("batch/v1", "Job", "completions: 3\ncompletionMode: Indexed"))
	if p.api.Labels["batch.kubernetes.io/job-name"] != "web" || p.api.Annotations["batch.kubernetes.io/job-completion-index"] != "0" || p.api.Annotations["note"] != "x" {
		t.Errorf("labels %q, annotations %q", p.api.Labels, p.api.Annotations)
	}
	if env := p.api.Spec.Containers[0].Env; len(env) != 1 || env[0].Name != "JOB_COMPLETION_INDEX" || env[0].Value != "0" || p.hostname() != "web-0" {
		t.Errorf("env %+v, host name %s", env, p.hostname())
	}
	p = read(template("batch/v1", "Job", ""))
	if len(p.api.Spec.Containers[0].Env) != 0 || p.hostname() != "web" {
		t.Errorf("a Job without an index has %+v, host name %s", p.api.Spec.Containers[0].Env, p.hostname())
	}
	p = read(template("apps/v1", "StatefulSet", "serviceName: db"))
	if p.api.Labels["statefulset.kubernetes.io/pod-name"] != "web-0" || p.api.Labels["apps.kubernetes.io/pod-index"] != "0" || p.api.Labels["app"] != "web" {
		t.Errorf("labels %q", p.api.Labels)
	}
}
