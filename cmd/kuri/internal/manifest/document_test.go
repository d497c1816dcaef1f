package manifest

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The documents of a file, as JSON, each on a line.
func TestDocumentsValues(t *testing.T) {
	for _, tt := range []struct {
		name, data string
		want       string // "" if err is set
		err        string
	}{
		{name: "merge", data: "x: &b {name: a, image: i}\nl: [*b, {<<: *b, name: b}]\n",
			want: `{"l":[{"image":"i","name":"a"},{"image":"i","name":"b"}],"x":{"image":"i","name":"a"}}`},
		{name: "its own key before the merge", data: "x: &b {n: 1}\ny:\n  n: 2\n  <<: *b\n",
			want: `{"x":{"n":1},"y":{"n":2}}`},
		{name: "a list of merges, the first counts", data: "a: &a {n: 1, o: 1}\nb: &b {n: 2, p: 2}\ny: {<<: [*a, *b]}\n",
			want: `{"a":{"n":1,"o":1},"b":{"n":2,"p":2},"y":{"n":1,"o":1,"p":2}}`},
		{name: "two merges", data: "a: &a {n: 1}\nb: &b {n: 2, p: 2}\ny:\n  <<: *a\n  <<: *b\n",
			want: `{"a":{"n":1},"b":{"n":2,"p":2},"y":{"n":1,"p":2}}`},
		{name: "merges within merges", data: "a: &a {n: 1}\nb: &b {<<: *a, p: 2}\ny: {<<: *b, n: 3}\n",
			want: `{"a":{"n":1},"b":{"n":1,"p":2},"y":{"n":3,"p":2}}`},
		{name: "a merge written out", data: "y: {<<: {n: 1}, o: 2}\n", want: `{"y":{"n":1,"o":2}}`},
		{name: "no merge key", data: "y: {'<<': 1}\n", want: `{"y":{"\u003c\u003c":1}}`},
		{name: "merge of text", data: "y: {<<: x}\n", err: "<< takes a mapping"},
		{name: "merge of a list of texts", data: "y: {<<: [x]}\n", err: "<< takes a mapping"},
		{name: "a key twice", data: "a: 1\nb: 2\na: 3\n", err: `line 3: the key "a" is there already, in line 1`},
		{name: "a key twice beside a merge", data: "b: &b {n: 1}\ny: {<<: *b, n: 2, n: 3}\n",
			err: `the key "n" is there already`},
		{name: "an alias that is not there", data: "a: *b\n", err: "unknown anchor"},
		{name: "an alias in itself", data: "a: &a [*a]\n", err: "a"},

		{name: "documents", data: "a: 1\n---\nb: 2\n", want: `{"a":1}` + "\n" + `{"b":2}`},
		{name: "a marker at the end", data: "a: 1\n---\nb: 2\n---\n", want: `{"a":1}` + "\n" + `{"b":2}`},
		{name: "a marker at the end without a newline", data: "a: 1\n---", want: `{"a":1}`},
		{name: "markers in a row", data: "---\n---\na: 1\n---\n# nothing\n---\nb: 2\n", want: `{"a":1}` + "\n" + `{"b":2}`},
		{name: "the end of a document", data: "a: 1\n...\n---\nb: 2\n...\n", want: `{"a":1}` + "\n" + `{"b":2}`},
		{name: "after the end of a document", data: "a: 1\n...\nb: 2\n", err: "begins with a line of ---"},
		{name: "on the marker's line", data: "--- {a: 1}\n--- # x\nb: 2\n", want: `{"a":1}` + "\n" + `{"b":2}`},
		{name: "CRLF", data: "a: 1\r\n---\r\nb: x\r\n", want: `{"a":1}` + "\n" + `{"b":"x"}`},
		{name: "BOM", data: "\ufeffa: 1\n---\nb: 2\n", want: `{"a":1}` + "\n" + `{"b":2}`},
		{name: "a marker in a text", data: "a: |\n  x\n  ---\n  y\n---\nb: 2\n", want: `{"a":"x\n---\ny\n"}` + "\n" +
			`{"b":2}`},
		{name: "a directive", data: "%YAML 1.1\n---\na: 1\n", want: `{"a":1}`},
		{name: "a later document that is broken", data: "a: 1\n---\nb: [\n", err: "line"},
		{name: "text after the end", data: "{a: 1} x\n", err: "begins with a line of ---"},

		{name: "JSON", data: "{\"a\": 1,\n\t\"b\": [true]}\n", want: `{"a":1,"b":[true]}`},
		{name: "JSON, one after the other", data: `{"a":1}{"b":2}` + "\n" + `{"c":3}`, want: `{"a":1}` + "\n" + `{"b":2}` +
			"\n" + `{"c":3}`},
		{name: "JSON and then something", data: `{"a":1} x`, err: "begins with a line of ---"},
		{name: "JSON with a BOM", data: "\ufeff" + `{"a":1}`, want: `{"a":1}`},
		{name: "JSON and YAML", data: "{\"a\":1}\n---\nb: 2\n", want: `{"a":1}` + "\n" + `{"b":2}`},
		{name: "a tab", data: "a:\n  b: 1\n\tc: 2\n", err: "line 3 is not YAML: it is indented by a tab"},

		{name: "booleans of old", data: "a: [yes, No, on, off, 'yes', true, !!str no]\n",
			want: `{"a":[true,false,true,false,"yes",true,"no"]}`},
		{name: "numbers", data: "a: [1, 0x10, 010, 0o10, 1.50, 1e3, .5, 1_000, -7, '1']\n",
			want: `{"a":[1,16,8,8,1.50,1e3,0.5,1000,-7,"1"]}`},
		{name: "no number", data: "a: .nan\n", err: "no number"},
		{name: "times and nothing", data: "a: [2026-01-02, ~, null, '']\n", want: `{"a":["2026-01-02",null,null,""]}`},
		{name: "keys", data: "{1: a, true: b, yes: c}\n", want: `{"1":"a","true":"b","yes":"c"}`},
		{name: "a key that is a list", data: "? [a]\n: 1\n", err: "a key must be text"},
		{name: "a tag", data: "a: !mine x\n", err: "the tag !mine is not known"},
		{name: "nothing", data: "# nothing\n", want: ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			docs, err := documents([]byte(tt.data))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			var got []string
			for _, d := range docs {
				var compact any
				in := json.NewDecoder(strings.NewReader(string(d)))
				in.UseNumber()
				if err := in.Decode(&compact); err != nil {
					t.Fatal(err)
				}
				text, _ := json.Marshal(compact)
				got = append(got, string(text))
			}
			if err != nil || strings.Join(got, "\n") != tt.want {
				t.Errorf("%v, got\n%s\nwant\n%s", err, strings.Join(got, "\n"), tt.want)
			}
		})
	}
}

// Aliases that multiply are an error, and do not fill the memory.
func TestAliasesAreBounded(t *testing.T) {
	data := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := range 12 {
		data += strings.NewReplacer("N", string(rune('b'+i)), "M",
			string(rune('a'+i))).Replace("N0: &N0 [*M0, *M0, *M0, *M0, *M0, *M0, *M0, *M0, *M0, *M0]\n")
	}
	if _, err := documents([]byte(data)); err == nil || !strings.Contains(err.Error(), "too many values") {
		t.Error(err)
	}
}

// Every document is valid JSON.
func FuzzDocuments(f *testing.F) {
	for _, seed := range []string{"a: 1\n", "a: &a {b: c}\nd: {<<: *a}\n", "a: [yes, 0x1, ~]\n---\nb: |\n  c\n",
		"{\"a\":\"\\u00e9\"}", "\ufeffa: b\r\n", "a: 2026-01-02\n", "- 1.0\n- .inf\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data string) {
		docs, err := documents([]byte(data))
		if err != nil {
			return
		}
		for _, d := range docs {
			if !json.Valid(d) {
				t.Fatalf("%q of %q is no JSON", d, data)
			}
		}
	})
}

// The manifests of this directory have the same meaning for Kubernetes' own reader.
func TestDocumentsAsKubernetes(t *testing.T) {
	for _, data := range []string{pod("hostNetwork: yes",
		"env: [{name: A, value: '1'}]\nresources: {limits: {cpu: 0.50, memory: 1e8}}"),
		"a: [1, 0644, 0x1F, 1e3, on, ~]\nb: {c: \"\\x41\"}\n"} {
		docs, err := documents([]byte(data))
		if err != nil || len(docs) != 1 {
			t.Fatal(docs, err)
		}
		theirs, err := yaml.YAMLToJSONStrict([]byte(data))
		if err != nil {
			t.Fatal(err)
		}
		var a, b any
		if err := json.Unmarshal(docs[0], &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(theirs, &b); err != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("%s, want %s: %v", docs[0], theirs, err)
		}
	}
}

// A value of the wrong type is reported with its field and with the right way to write it.
func TestShapes(t *testing.T) {
	for manifest, want := range map[string]string{
		pod("", "command: [sleep, 1000]"):       `spec.containers[0].command[1]: expected text, and it is a number: write it in quotes, "1000"`,
		pod("", "command: sleep 1000"):          `spec.containers[0].command: expected a list, and it is text: write it in brackets, [sleep 1000]`,
		pod("", "env: [{name: A, value: yes}]"): `spec.containers[0].env[0].value: expected text, and it is true or false: write it in quotes, "true"`,
		pod("", "env: {A: b}"):                  "spec.containers[0].env: expected a list, and it is a mapping",
		pod("", "") + "---b: 1\n":               `unknown field "---b"`,
		pod("hostNetwork: \"true\"",
			""): "spec.hostNetwork: expected true or false, and it is text: leave out the quotes",
		pod("", "ports: [{containerPort: \"80\"}]"):      "spec.containers[0].ports[0].containerPort: expected a whole number, and it is text: leave out the quotes",
		pod("", "ports: [{containerPort: 80.5}]"):        "expected a whole number such as 7, and it is 80.5",
		pod("", "ports: [{containerPort: 99999999999}]"): "99999999999 is out of range",
		pod("terminationGracePeriodSeconds: 30s",
			""): "expected a whole number, and it is text",
		pod("volumes: {v: {}}", ""):                               "spec.volumes: expected a list, and it is a mapping",
		pod("nodeSelector: [a]", ""):                              "spec.nodeSelector: expected a mapping, and it is a list",
		"apiVersion: v1\nkind: Pod\nmetadata: p\n":                "metadata: expected a mapping, and it is text",
		"apiVersion: v1\nkind: Pod\nmetadata: {labels: {a: 1}}\n": `metadata.labels[a]: expected text, and it is a number`,
		"- apiVersion: v1\n":                                      "expected a Pod, and it is a list",
		"nginx\n":                                                 "expected a Pod, and it is text",
		"a: 1\n":                                                  "it has no apiVersion and no kind",
		pod("", "resources: {limits: {memory: 64m}}"):             "spec.containers[0].resources.limits[memory]: 64m is not even whole bytes, as m means a thousandth: did you mean 64Mi?",
		pod("", "resources: {limits: {memory: 500m}}"):            "did you mean 500Mi?",
		pod("", "resources: {limits: {memory: 64}}"):              "64 is 64 bytes, in which nothing runs: did you mean 64Mi?",
		pod("", "resources: {limits: {memory: 1000m}}"):           "did you mean 1000Mi?",
		pod("", "resources: {limits: {memory: 64k}}"):             "did you mean 64Mi?",
		pod("", "resources: {limits: {memory: 64MB}}"):            `"64MB" is not a quantity: did you mean 64Mi?`,
		pod("", "resources: {limits: {memory: 64mb}}"):            "did you mean 64Mi?",
		pod("", "resources: {limits: {memory: 1GiB}}"):            "did you mean 1Gi?",
		pod("", "resources: {limits: {memory: 1g}}"):              "did you mean 1Gi?",
		pod("", "resources: {limits: {memory: 64 Mi}}"):           "did you mean 64Mi?",
		pod("", "resources: {limits: {memory: \"1,5Gi\"}}"):       "did you mean 1.5Gi?",
		pod("", "resources: {limits: {memory: 512bytes}}"):        "did you mean 512? Bytes have no unit",
		pod("", "resources: {limits: {memory: lots}}"):            `"lots" is not a quantity: expected a number with a unit`,
		pod("", "resources: {limits: {memory: [1]}}"):             "expected a quantity such as 500m or 64Mi, and it is a list",
		pod("", "resources: {requests: {memory: 64m}}"):           "did you mean 64Mi?",
		pod("", "resources: {limits: {cpu: 500M}}"):               "500M is 500000000 cores: did you mean 500m, thousandths of a core?",
		pod("", "resources: {limits: {cpu: 1Gi}}"):                "did you mean 1m",
		pod("", "resources: {limits: {cpu: 500mcpu}}"):            "did you mean 500m?",
		pod("", "resources: {limits: {cpu: 2cores}}"):             "did you mean 2?",
		pod("", "resources: {limits: {cpu: 500millicores}}"):      "did you mean 500m?",
		pod("volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 64m}}]",
			""): "spec.volumes[0].emptyDir.sizeLimit: 64m is not even whole bytes",
	} {
		_, err := decode([]byte(manifest), "")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
		if err != nil && (strings.Contains(err.Error(), "Go struct") || strings.Contains(err.Error(), "unmarshal") ||
			strings.Contains(err.Error(), "regular expression")) {
			t.Errorf("a library's words: %v", err)
		}
	}
	for manifest, want := range map[string]string{
		pod("", "resources: {limits: {cpu: 1000}}"):                  "spec.containers[0].resources.limits[cpu]: 1000 is 1000 whole cores: did you mean 1000m",
		pod("", "resources: {requests: {memory: 64}}"):               "requests[memory]: 64 is 64 bytes: did you mean 64Mi?",
		pod("", "resources: {limits: {cpu: 1500m, memory: 64Mi}}"):   "",
		pod("", "resources: {limits: {cpu: 0.5, memory: 67108864}}"): "",
		pod("", "resources: {limits: {cpu: '2', memory: 1e9}}"):      "",
		pod("", "livenessProbe: {httpGet: {port: http, path: /}}"):   "livenessProbe is ignored",
	} {
		pods, err := decode([]byte(manifest), "")
		if err != nil {
			t.Errorf("%v: %s", err, manifest)
			continue
		}
		if got := strings.Join(pods[0].Warnings, "\n"); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("warnings %q, want %q", got, want)
		}
	}
}

func TestLists(t *testing.T) {
	data := "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: i}]}}\n- {apiVersion: v1, kind: Pod, metadata: {name: b}, spec: {containers: [{name: c, image: i}]}}\n"
	pods, err := decode([]byte(data), "")
	if err != nil || len(pods) != 2 || pods[1].Name() != "b" {
		t.Errorf("%v %v", pods, err)
	}
	if _, err := decode([]byte(strings.Replace(data, "kind: Pod", "kind: Job", 1)), ""); err == nil ||
		!strings.Contains(err.Error(), `items[0]: it is apiVersion "v1", kind "Job": a Job is of apiVersion batch/v1`) {
		t.Error(err)
	}
}

// With a user namespace, the pod, its containers and every mount have the same mapping.
func TestUserNamespaceAndImageVolume(t *testing.T) {
	pods, err := decode([]byte(pod("hostUsers: false\nvolumes: [{name: v, image: {reference: data:1}}, {name: h, hostPath: {path: /x}}]",
		"volumeMounts: [{name: v, mountPath: /v, subPath: a/b}, {name: h, mountPath: /h}]")), "")
	if err != nil {
		t.Fatal(err)
	}
	p, f := pods[0], facts()
	f.FirstID, f.VolumePaths, f.VolumeImages = 1<<30, map[string]string{"h": "/x"}, map[string]string{"v": "sha256:data"}
	if got := p.ImageVolumes(); len(got) != 1 || got[0] != (ImageVolume{"v", "data:1", PullMissing}) {
		t.Errorf("%+v", got)
	}
	config, err := p.Config(p.Containers()[0], Image{ID: "sha256:c"}, f)
	if err != nil {
		t.Fatal(err)
	}
	inPod := p.Sandbox(f).Linux.SecurityContext.NamespaceOptions.UsernsOptions
	inContainer := config.Linux.SecurityContext.NamespaceOptions.UsernsOptions
	if inPod.String() != inContainer.String() || len(inPod.GetUids()) != 1 || inPod.Uids[0].HostId != 1<<30 ||
		inPod.Gids[0].Length != 65536 {
		t.Errorf("%v, in the container %v", inPod, inContainer)
	}
	image, host := config.Mounts[0], config.Mounts[1]
	if image.GetImage().GetImage() != "sha256:data" || image.ImageSubPath != "a/b" || !image.Readonly ||
		image.HostPath != "" {
		t.Errorf("image volume: %v", image)
	}
	if len(host.UidMappings) != 1 || host.UidMappings[0].HostId != 1<<30 || len(host.GidMappings) != 1 {
		t.Errorf("host path: %v", host)
	}
}
