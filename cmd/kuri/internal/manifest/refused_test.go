package manifest

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestWhatIsNotHonouredIsNamed(t *testing.T) {
	for _, tt := range []struct {
		name     string
		manifest string
		warnings []string // parts, in order
		problem  string   // a part; "" if the pod can be run
	}{
		{name: "nothing special", manifest: pod("", "")},
		{name: "probes", manifest: pod("", "livenessProbe: {exec: {command: [x]}}\nreadinessProbe: {}"),
			warnings: []string{"spec.containers[0].livenessProbe is ignored: nothing probes", "spec.containers[0].readinessProbe"}},
		{name: "restart policy", manifest: pod("restartPolicy: Always", ""), warnings: []string{"spec.restartPolicy is ignored: a container that exits"}},
		{name: "restart policy Never is what happens", manifest: pod("restartPolicy: Never", "")},
		{name: "scheduling", manifest: pod("nodeSelector: {a: b}\ntolerations: [{operator: Exists}]", ""), warnings: []string{"spec.nodeSelector", "spec.tolerations"}},
		{name: "values that ask for nothing", manifest: pod("hostUsers: true\nautomountServiceAccountToken: false\nenableServiceLinks: true\nsetHostnameAsFQDN: false\nos: {name: linux}\ntolerations: []\nephemeralContainers: []", "envFrom: []")},
		{name: "a status from a cluster", manifest: pod("", "") + "status: {phase: Running}\n", warnings: []string{"status is ignored"}},
		{name: "storage", manifest: pod("", "resources: {limits: {ephemeral-storage: 1Gi}}"), warnings: []string{"resources.limits[ephemeral-storage] is ignored"}},
		{name: "size of a directory", manifest: pod("volumes: [{name: v, emptyDir: {sizeLimit: 1Gi}}]", ""), warnings: []string{"spec.volumes[0].emptyDir.sizeLimit is ignored"}},

		{name: "user namespace", manifest: pod("hostUsers: false", "")},
		{name: "user namespace and the node's processes", manifest: pod("hostUsers: false\nhostPID: true", ""), problem: "spec.hostUsers: a pod with a user namespace cannot have"},
		{name: "image volume", manifest: pod("volumes: [{name: v, image: {reference: a:1}}]", "volumeMounts: [{name: v, mountPath: /v, subPath: x/y}]")},
		{name: "image volume without an image", manifest: pod("volumes: [{name: v, image: {}}]", ""), problem: `spec.volumes[0].image.reference: "": an image is needed`},
		{name: "image volume with a policy", manifest: pod("volumes: [{name: v, image: {reference: a, pullPolicy: Sometimes}}]", ""), problem: `spec.volumes[0].image.pullPolicy: "Sometimes"`},
		{name: "image volume that climbs", manifest: pod("volumes: [{name: v, image: {reference: a}}]", "volumeMounts: [{name: v, mountPath: /v, subPath: x/../..}]"), problem: "subPath"},
		{name: "two sources", manifest: pod("volumes: [{name: v, image: {reference: a}, emptyDir: {}}]", ""), problem: "a volume has one source"},
		{name: "envFrom", manifest: pod("", "envFrom: [{configMapRef: {name: x}}]"), problem: `spec.containers[0].envFrom[0]: there is no ConfigMap "x" in the file: put it there, or name its file with --configmap`},
		{name: "envFrom that is optional", manifest: pod("", "envFrom: [{configMapRef: {name: x, optional: true}}]")},
		{name: "envFrom with a prefix", manifest: pod("", "envFrom: [{prefix: a=, configMapRef: {name: x, optional: true}}]"), problem: `envFrom[0].prefix: "a=" cannot begin the name of a variable`},
		{name: "envFrom of nothing", manifest: pod("", "envFrom: [{prefix: x}]"), problem: "spec.containers[0].envFrom[0]: a configMapRef or a secretRef is needed"},
		{name: "secret in env", manifest: pod("", "env: [{name: A, valueFrom: {secretKeyRef: {name: a, key: b}}}]"), problem: `spec.containers[0].env[0].valueFrom: there is no Secret "a"`},
		{name: "a variable of nothing", manifest: pod("", "env: [{name: A, valueFrom: {}}]"), problem: "spec.containers[0].env[0].valueFrom: a source is needed"},
		{name: "resource in env", manifest: pod("", "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.disk}}}]"), problem: `env[0].valueFrom: resource "limits.disk" is not supported`},
		{name: "unsupported field", manifest: pod("", "env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.phase}}}]"), problem: `env[0].valueFrom.fieldRef.fieldPath: "status.phase" is not supported`},
		{name: "hooks", manifest: pod("", "lifecycle: {postStart: {exec: {command: [x]}}, preStop: {sleep: {seconds: 3}}}")},
		{name: "a hook of two", manifest: pod("", "lifecycle: {preStop: {exec: {command: [x]}, sleep: {seconds: 3}}}"), problem: "spec.containers[0].lifecycle.preStop: a hook is one of"},
		{name: "a hook of nothing", manifest: pod("", "lifecycle: {preStop: {}}"), problem: "spec.containers[0].lifecycle.preStop: a hook is one of"},
		{name: "a hook at no port", manifest: pod("", "lifecycle: {preStop: {httpGet: {port: web}}}"), problem: "lifecycle.preStop.httpGet.port: web is neither a port nor the name of one"},
		{name: "a socket as a hook", manifest: pod("", "lifecycle: {preStop: {tcpSocket: {port: 80}}}"), problem: "lifecycle.preStop.tcpSocket: Kubernetes too has no such hook"},
		{name: "configMap", manifest: pod("volumes: [{name: v, configMap: {name: x}}]", ""), problem: `spec.volumes[0].configMap: there is no ConfigMap "x"`},
		{name: "an empty source is one too", manifest: pod("volumes: [{name: v, configMap: {}}]", ""), problem: "spec.volumes[0].configMap: the name of a ConfigMap is needed"},
		{name: "token", manifest: pod("volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]", ""), problem: "projected.sources[0].serviceAccountToken: there is no API server"},
		{name: "address in a volume", manifest: pod("volumes: [{name: v, downwardAPI: {items: [{path: a, fieldRef: {fieldPath: status.podIP}}]}}]", ""), problem: "downwardAPI.items[0].fieldRef: status.podIP is for env"},
		{name: "file that climbs", manifest: pod("volumes: [{name: v, downwardAPI: {items: [{path: ../a, fieldRef: {fieldPath: metadata.name}}]}}]", ""), problem: `downwardAPI.items[0].fieldRef: "../a": expected a path below the volume`},
		{name: "file in the way", manifest: pod("volumes: [{name: v, downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name}}, {path: a/b, fieldRef: {fieldPath: metadata.name}}]}}]", ""), problem: `spec.volumes[0]: "a" is a file, and "a/b" lies below it`},
		{name: "file mode", manifest: pod("volumes: [{name: v, downwardAPI: {items: [{path: a, mode: 4095, fieldRef: {fieldPath: metadata.name}}]}}]", ""), problem: "mode 07777: expected 0 to 0777"},
		{name: "claim", manifest: pod("volumes: [{name: v, persistentVolumeClaim: {claimName: x}}]", ""), warnings: []string{"the claim x is a directory of this node"}},
		{name: "claim that is a path", manifest: pod("volumes: [{name: v, persistentVolumeClaim: {claimName: ../x}}]", ""), problem: `spec.volumes[0].persistentVolumeClaim.claimName: "../x"`},
		{name: "storage of others", manifest: pod("volumes: [{name: v, nfs: {server: a, path: /b}}]", ""), problem: "spec.volumes[0].nfs: there is no storage provider"},
		{name: "subPath", manifest: pod("volumes: [{name: v, emptyDir: {}}]", "volumeMounts: [{name: v, mountPath: /v, subPath: x}]")},
		{name: "subPath that climbs", manifest: pod("volumes: [{name: v, emptyDir: {}}]", "volumeMounts: [{name: v, mountPath: /v, subPath: x/../../y}]"), problem: "spec.containers[0].volumeMounts[0].subPath"},
		{name: "two subPaths", manifest: pod("volumes: [{name: v, emptyDir: {}}]", "volumeMounts: [{name: v, mountPath: /v, subPath: x, subPathExpr: z}]"), problem: "either subPath or subPathExpr"},
		{name: "the token of a cluster", manifest: pod("volumes: [{name: kube-api-access-x, projected: {sources: [{serviceAccountToken: {path: t}}, {configMap: {name: kube-root-ca.crt}}]}}]",
			"volumeMounts: [{name: kube-api-access-x, mountPath: /v}]"), warnings: []string{"the volume kube-api-access-… is left out"}},
		{name: "extended resource", manifest: pod("", "resources: {limits: {nvidia.com/gpu: 1}}"), problem: "resources.limits[nvidia.com/gpu]: kuri run has no device plugin that provides it"},
		{name: "windows", manifest: pod("os: {name: windows}", ""), problem: "spec.os.name: this is a Linux node"},
		{name: "deadline", manifest: pod("activeDeadlineSeconds: 5", ""), warnings: []string{"spec.activeDeadlineSeconds is ignored: nothing stops the pod"}},

		{name: "unknown field", manifest: pod("", "imagePullPolice: Never"), problem: `unknown field "spec.containers[0].imagePullPolice"`},
		{name: "wrong case", manifest: pod("hostnetwork: true", ""), problem: `unknown field "spec.hostnetwork"`},
		{name: "key twice", manifest: pod("hostNetwork: true\nhostNetwork: true", ""), problem: "already"},
		{name: "wrong type", manifest: pod("hostNetwork: 7", ""), problem: "hostNetwork"},
		{name: "a deployment", manifest: "apiVersion: apps/v1\nkind: Deployment\n", problem: "spec.containers: at least one"},
		{name: "a deployment of another API", manifest: "apiVersion: extensions/v1beta1\nkind: Deployment\n", problem: `kind "Deployment": a Deployment is of apiVersion apps/v1`},
		{name: "a kind in lower case", manifest: "apiVersion: v1\nkind: pod\n", problem: `kind "pod": did you mean Pod?`},
		{name: "a kind that is misspelt", manifest: "apiVersion: apps/v1\nkind: Deploymnt\n", problem: `kind "Deploymnt": did you mean Deployment?`},
		{name: "nothing to run", manifest: "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n", problem: "there is no pod in it to run, and nothing with the template of one: it has Service web"},
		{name: "no object", manifest: "- a\n", problem: "expected a Pod"},
		{name: "not YAML", manifest: "a: [", problem: "line 1 is not YAML"},
		{name: "empty", manifest: "# nothing\n---\n", problem: "the manifest is empty"},
		{name: "no containers", manifest: "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {}\n", problem: "spec.containers: at least one"},
		{name: "no name", manifest: "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: c, image: i}]}\n", problem: "metadata.name: a name is needed"},
		{name: "a name in upper case", manifest: "apiVersion: v1\nkind: Pod\nmetadata: {name: Web}\nspec: {containers: [{name: c, image: i}]}\n", problem: "start and end with an alphanumeric character"},
		{name: "a name that is a path", manifest: "apiVersion: v1\nkind: Pod\nmetadata: {name: ../x}\nspec: {containers: [{name: c, image: i}]}\n", problem: `metadata.name: "../x"`},
		{name: "a namespace that is a path", manifest: "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: a/b}\nspec: {containers: [{name: c, image: i}]}\n", problem: `metadata.namespace: "a/b"`},
		{name: "a container that is a path", manifest: "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: .., image: i}]}\n", problem: `spec.containers[0].name: ".."`},
		{name: "a container twice", manifest: pod("initContainers: [{name: c, image: i}]", ""), problem: `spec.containers[0].name: "c" is there twice`},
		{name: "no such volume", manifest: pod("", "volumeMounts: [{name: v, mountPath: /v}]"), problem: `volumeMounts[0].name: the pod has no volume "v"`},
		{name: "a volume without a source is an emptyDir", manifest: pod("volumes: [{name: v}, {name: w, emptyDir: }]", "volumeMounts: [{name: v, mountPath: /v}]")},
		{name: "a container without a name", manifest: "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{image: i}]}\n", problem: "spec.containers[0].name: a name is needed"},
		{name: "climbing hostPath", manifest: pod("volumes: [{name: v, hostPath: {path: /a/../b}}]", ""), problem: "without .."},
		{name: "hostPath type", manifest: pod("volumes: [{name: v, hostPath: {path: /a, type: Fifo}}]", ""), problem: `spec.volumes[0].hostPath.type: "Fifo"`},
		{name: "host port twice", manifest: pod("", "ports: [{containerPort: 1, hostPort: 80}, {containerPort: 2, hostPort: 80}]"), problem: "ports[1].hostPort: 80 is there twice"},
		{name: "port", manifest: pod("", "ports: [{containerPort: 70000}]"), problem: "ports[0].containerPort: 70000"},
		{name: "request above limit", manifest: pod("", "resources: {limits: {cpu: 1}, requests: {cpu: 2}}"), problem: "requests[cpu]: 2 is more than the limit, 1"},
		{name: "negative", manifest: pod("", "resources: {limits: {memory: -1}}"), problem: "limits[memory]: -1 is out of range"},
		{name: "user id", manifest: pod("securityContext: {runAsUser: -1}", ""), problem: "spec.securityContext: -1 is not"},
		{name: "seccomp", manifest: pod("securityContext: {seccompProfile: {type: Localhost}}", ""), problem: "spec.securityContext.seccompProfile.localhostProfile"},
		{name: "propagation", manifest: pod("volumes: [{name: v, emptyDir: {}}]", "volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]"), problem: "privileged containers only"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pods, err := decode([]byte(tt.manifest), "")
			if tt.problem != "" {
				if err == nil || !strings.Contains(err.Error(), tt.problem) {
					t.Fatalf("error %v, want one with %q", err, tt.problem)
				}
				if strings.Contains(err.Error(), "regex") {
					t.Errorf("a regular expression: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(pods[0].Warnings) != len(tt.warnings) {
				t.Fatalf("warnings %q, want %q", pods[0].Warnings, tt.warnings)
			}
			for i, w := range tt.warnings {
				if !strings.Contains(pods[0].Warnings[i], w) {
					t.Errorf("warning %q, want one with %q", pods[0].Warnings[i], w)
				}
			}
		})
	}
}

// TestEveryFieldHasARule compares the types of k8s.io/api with the table. It fails for a field
// without a rule, and for a rule without a field.
func TestEveryFieldHasARule(t *testing.T) {
	used := map[string]bool{}
	var walk func(typ reflect.Type, path string)
	walk = func(typ reflect.Type, path string) {
		for typ.Kind() == reflect.Pointer {
			typ = typ.Elem()
		}
		if _, ok := find(path); ok {
			used[path] = true
			return
		}
		switch {
		case typ.Kind() == reflect.Struct && !isLeaf(typ):
			for i := range typ.NumField() {
				name, inline := jsonName(typ.Field(i))
				if inline {
					walk(typ.Field(i).Type, path)
				} else {
					walk(typ.Field(i).Type, join(path, name))
				}
			}
		case typ.Kind() == reflect.Slice:
			walk(typ.Elem(), path+"[]")
		default:
			t.Errorf("no rule for %s (%s)", path, typ)
		}
	}
	walk(reflect.TypeFor[corev1.Pod](), "")
	for path, r := range table {
		if !used[path] {
			t.Errorf("the rule for %s matches no field", path)
		}
		if (r.why == "") != (r.verdict == honoured) {
			t.Errorf("%s: a reason belongs to what is not honoured, and only there", path)
		}
	}
}
