package manifest

import (
	"fmt"
	"reflect"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// verdict is the treatment of a field.
type verdict int

const (
	honoured verdict = iota // it is translated, or has no effect on a single node anyway
	ignored                 // the pod works the same without it; a warning names it
	refused                 // the pod would be different without it; an error names it
)

// rule is a line of the table.
type rule struct {
	verdict verdict
	why     string
	// unless, unless nil, reports whether a set value only asks for the behaviour that applies
	// anyway.
	unless func(reflect.Value) bool
}

// table has a rule for each field of a Pod, or one for a field and all fields below it. List
// elements are written []. Init containers use the rules of containers unless they have their own.
var table = map[string]rule{
	"apiVersion": {},
	"kind":       {},
	"status":     {ignored, "it is what a cluster reports, not a wish", nil},

	"metadata.name":                       {},
	"metadata.namespace":                  {},
	"metadata.labels":                     {},
	"metadata.annotations":                {},
	"metadata.generateName":               {}, // see generateName
	"metadata.uid":                        {ignored, "each run gets a uid of its own", nil},
	"metadata.selfLink":                   {ignored, "there is no API server", nil},
	"metadata.resourceVersion":            {ignored, "there is no API server", nil},
	"metadata.generation":                 {ignored, "there is no API server", nil},
	"metadata.creationTimestamp":          {ignored, "there is no API server", nil},
	"metadata.deletionTimestamp":          {ignored, "there is no API server", nil},
	"metadata.deletionGracePeriodSeconds": {ignored, "there is no API server", nil},
	"metadata.ownerReferences":            {ignored, "there is no API server", nil},
	"metadata.finalizers":                 {ignored, "there is no API server", nil},
	"metadata.managedFields":              {ignored, "there is no API server", nil},

	"spec.activeDeadlineSeconds":          {ignored, "nothing stops the pod at its deadline", nil},
	"spec.affinity":                       {ignored, "there is no scheduler", nil},
	"spec.automountServiceAccountToken":   {ignored, "there are no service accounts", isFalse},
	"spec.dnsConfig":                      {},
	"spec.dnsPolicy":                      {ignored, "there is no cluster DNS, the pod gets the node's resolver", isOneOf("Default", "None")},
	"spec.enableServiceLinks":             {}, // there are no services to link
	"spec.ephemeralContainers":            {refused, "Kubernetes too takes them only for a pod that runs already", nil},
	"spec.evictionResponders":             {ignored, "nothing evicts the pod", nil},
	"spec.hostAliases":                    {},
	"spec.hostIPC":                        {},
	"spec.hostNetwork":                    {},
	"spec.hostPID":                        {},
	"spec.hostUsers":                      {},
	"spec.hostname":                       {},
	"spec.hostnameOverride":               {},
	"spec.imagePullSecrets":               {}, // see Pod.pullSecrets
	"spec.nodeName":                       {ignored, "the pod runs on this node", nil},
	"spec.nodeSelector":                   {ignored, "there is no scheduler", nil},
	"spec.os.name":                        {refused, "this is a Linux node", isOneOf("linux")},
	"spec.overhead":                       {},
	"spec.preemptionPolicy":               {ignored, "there is no scheduler", nil},
	"spec.priority":                       {ignored, "there is no scheduler", nil},
	"spec.priorityClassName":              {ignored, "there is no scheduler", nil},
	"spec.readinessGates":                 {ignored, "nothing waits for the pod's readiness", nil},
	"spec.resourceClaims":                 {refused, "there is no allocator of devices", nil},
	"spec.resources":                      {refused, "limits of a whole pod are not supported, give them to its containers", nil},
	"spec.restartPolicy":                  {ignored, "a container that exits is not started again", isOneOf("Never")},
	"spec.runtimeClassName":               {}, // used as the name of the handler
	"spec.schedulerName":                  {ignored, "there is no scheduler", nil},
	"spec.schedulingGates":                {refused, "a gated pod is not meant to run yet", nil},
	"spec.schedulingGroup":                {ignored, "there is no scheduler", nil},
	"spec.serviceAccount":                 {ignored, "there are no service accounts", nil},
	"spec.serviceAccountName":             {ignored, "there are no service accounts", nil},
	"spec.setHostnameAsFQDN":              {refused, "there is no cluster domain", isFalse},
	"spec.shareProcessNamespace":          {},
	"spec.subdomain":                      {ignored, "there is no cluster domain", nil},
	"spec.terminationGracePeriodSeconds":  {},
	"spec.tolerations":                    {ignored, "there is no scheduler", nil},
	"spec.topologySpreadConstraints":      {ignored, "there is no scheduler", nil},
	"spec.securityContext.windowsOptions": {refused, "this is a Linux node", nil},

	"spec.securityContext.runAsUser":                {},
	"spec.securityContext.runAsGroup":               {},
	"spec.securityContext.runAsNonRoot":             {},
	"spec.securityContext.supplementalGroups":       {},
	"spec.securityContext.supplementalGroupsPolicy": {},
	"spec.securityContext.fsGroup":                  {},
	"spec.securityContext.fsGroupChangePolicy":      {}, // every emptyDir is new, so both policies do the same
	"spec.securityContext.sysctls":                  {},
	"spec.securityContext.seLinuxOptions":           {},
	"spec.securityContext.seLinuxChangePolicy":      {ignored, "no volume is relabelled", nil},
	"spec.securityContext.seccompProfile":           {},
	"spec.securityContext.appArmorProfile":          {},

	"spec.volumes[].name":               {},
	"spec.volumes[].emptyDir.medium":    {},
	"spec.volumes[].emptyDir.mode":      {},
	"spec.volumes[].emptyDir.sizeLimit": {}, // with medium Memory, see validator.volumes
	"spec.volumes[].hostPath":           {},

	"spec.volumes[].configMap":   {}, // the file must have it; see Pod.references
	"spec.volumes[].secret":      {},
	"spec.volumes[].downwardAPI": {},
	"spec.volumes[].image":       {},

	"spec.volumes[].projected.defaultMode":                   {},
	"spec.volumes[].projected.defaultUser":                   {},
	"spec.volumes[].projected.sources[].configMap":           {},
	"spec.volumes[].projected.sources[].secret":              {},
	"spec.volumes[].projected.sources[].downwardAPI":         {},
	"spec.volumes[].projected.sources[].serviceAccountToken": {refused, "there is no API server that issues tokens: use a Secret", nil},
	"spec.volumes[].projected.sources[].clusterTrustBundle":  {refused, "there is no API server: put the certificates into a ConfigMap", nil},
	"spec.volumes[].projected.sources[].podCertificate":      {refused, "there is no API server that issues certificates: use a Secret", nil},

	"spec.volumes[].persistentVolumeClaim": {}, // a directory that survives the pod
	"spec.volumes[].ephemeral":             {}, // a directory that is removed with the pod
	"spec.volumes[].csi":                   {refused, noStorage, nil},
	"spec.volumes[].nfs":                   {refused, noStorage, nil},
	"spec.volumes[].iscsi":                 {refused, noStorage, nil},
	"spec.volumes[].fc":                    {refused, noStorage, nil},
	"spec.volumes[].gitRepo":               {refused, noStorage, nil},
	"spec.volumes[].gcePersistentDisk":     {refused, noStorage, nil},
	"spec.volumes[].awsElasticBlockStore":  {refused, noStorage, nil},
	"spec.volumes[].azureDisk":             {refused, noStorage, nil},
	"spec.volumes[].azureFile":             {refused, noStorage, nil},
	"spec.volumes[].cephfs":                {refused, noStorage, nil},
	"spec.volumes[].cinder":                {refused, noStorage, nil},
	"spec.volumes[].flexVolume":            {refused, noStorage, nil},
	"spec.volumes[].flocker":               {refused, noStorage, nil},
	"spec.volumes[].glusterfs":             {refused, noStorage, nil},
	"spec.volumes[].photonPersistentDisk":  {refused, noStorage, nil},
	"spec.volumes[].portworxVolume":        {refused, noStorage, nil},
	"spec.volumes[].quobyte":               {refused, noStorage, nil},
	"spec.volumes[].rbd":                   {refused, noStorage, nil},
	"spec.volumes[].scaleIO":               {refused, noStorage, nil},
	"spec.volumes[].storageos":             {refused, noStorage, nil},
	"spec.volumes[].vsphereVolume":         {refused, noStorage, nil},

	"spec.initContainers[].restartPolicy":      {ignored, "a container that exits is not started again", isOneOf("Never", "Always")}, // Always: see Container.Sidecar
	"spec.containers[].restartPolicy":          {ignored, "a container that exits is not started again", isOneOf("Never")},
	"spec.containers[].restartPolicyRules":     {ignored, "a container that exits is not started again", nil},
	"spec.containers[].name":                   {},
	"spec.containers[].image":                  {},
	"spec.containers[].imagePullPolicy":        {},
	"spec.containers[].command":                {},
	"spec.containers[].args":                   {},
	"spec.containers[].workingDir":             {},
	"spec.containers[].stdin":                  {},
	"spec.containers[].stdinOnce":              {},
	"spec.containers[].tty":                    {},
	"spec.containers[].ports":                  {},
	"spec.containers[].envFrom":                {}, // see Pod.references
	"spec.containers[].env[].name":             {},
	"spec.containers[].env[].value":            {},
	"spec.containers[].livenessProbe":          {ignored, "nothing probes the container", nil},
	"spec.containers[].readinessProbe":         {ignored, "nothing probes the container", nil},
	"spec.containers[].startupProbe":           {ignored, "nothing probes the container", nil},
	"spec.containers[].lifecycle.postStart":    {},
	"spec.containers[].lifecycle.preStop":      {},
	"spec.containers[].lifecycle.stopSignal":   {},
	"spec.containers[].resizePolicy":           {ignored, "nothing resizes the container", nil},
	"spec.containers[].resources.limits":       {}, // by name, see validator.resourceList
	"spec.containers[].resources.requests":     {},
	"spec.containers[].resources.claims":       {refused, "there is no allocator of devices", nil},
	"spec.containers[].volumeDevices":          {refused, noStorage, nil},
	"spec.containers[].terminationMessagePath": {ignored, "nothing reads it", nil},
	"spec.containers[].terminationMessagePolicy": {
		ignored, "nothing reads it", nil},

	"spec.containers[].env[].valueFrom.fieldRef":         {}, // by path, see fieldValue
	"spec.containers[].env[].valueFrom.configMapKeyRef":  {},
	"spec.containers[].env[].valueFrom.secretKeyRef":     {},
	"spec.containers[].env[].valueFrom.resourceFieldRef": {}, // by name, see resourceValue
	"spec.containers[].env[].valueFrom.fileKeyRef":       {refused, "it is not supported: write the value into env", nil},

	"spec.containers[].volumeMounts[].name":              {},
	"spec.containers[].volumeMounts[].readOnly":          {},
	"spec.containers[].volumeMounts[].recursiveReadOnly": {},
	"spec.containers[].volumeMounts[].mountPath":         {},
	"spec.containers[].volumeMounts[].mountPropagation":  {},
	"spec.containers[].volumeMounts[].bindMountOptions":  {refused, "options of a bind mount are not supported yet", nil},
	"spec.containers[].volumeMounts[].subPath":           {},
	"spec.containers[].volumeMounts[].subPathExpr":       {},

	"spec.containers[].securityContext.windowsOptions":           {refused, "this is a Linux node", nil},
	"spec.containers[].securityContext.capabilities":             {},
	"spec.containers[].securityContext.privileged":               {},
	"spec.containers[].securityContext.runAsUser":                {},
	"spec.containers[].securityContext.runAsGroup":               {},
	"spec.containers[].securityContext.runAsNonRoot":             {},
	"spec.containers[].securityContext.readOnlyRootFilesystem":   {},
	"spec.containers[].securityContext.allowPrivilegeEscalation": {},
	"spec.containers[].securityContext.procMount":                {},
	"spec.containers[].securityContext.seLinuxOptions":           {},
	"spec.containers[].securityContext.seccompProfile":           {},
	"spec.containers[].securityContext.appArmorProfile":          {},
}

const (
	noStorage = "there is no storage provider: use a persistentVolumeClaim, which is a directory here, a hostPath or an emptyDir"
)

func isFalse(v reflect.Value) bool { return v.Kind() == reflect.Bool && !v.Bool() }

func isOneOf(values ...string) func(reflect.Value) bool {
	return func(v reflect.Value) bool {
		for _, s := range values {
			if v.Kind() == reflect.String && v.String() == s {
				return true
			}
		}
		return false
	}
}

// find returns the rule for a path as written in the table.
func find(path string) (rule, bool) {
	if r, ok := table[path]; ok {
		return r, true
	}
	if rest, ok := strings.CutPrefix(path, "spec.initContainers[]"); ok {
		r, ok := table["spec.containers[]"+rest]
		return r, ok
	}
	return rule{}, false
}

// checkFields compares every set field of pod with the table. Both results name fields as
// Kubernetes does.
func checkFields(pod *corev1.Pod) (warnings, problems []string) {
	c := &checker{}
	c.walk(reflect.ValueOf(pod).Elem(), "", "")
	return c.warnings, c.problems
}

type checker struct {
	warnings, problems []string
	ignored            []reflect.Value // the fields of the warnings
}

// walk visits v, whose place is path as written in the table, and shown in messages.
func (c *checker) walk(v reflect.Value, path, shown string) {
	field := v
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
	}
	if r, ok := find(path); ok {
		if c.apply(r, v, shown) == ignored {
			c.ignored = append(c.ignored, field)
		}
		return
	}
	switch {
	case v.Kind() == reflect.Struct && !isLeaf(v.Type()):
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				continue
			}
			name, inline := jsonName(v.Type().Field(i))
			if inline {
				c.walk(v.Field(i), path, shown)
				continue
			}
			c.walk(v.Field(i), join(path, name), join(shown, name))
		}
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			c.walk(v.Index(i), path+"[]", fmt.Sprintf("%s[%d]", shown, i))
		}
	default:
		c.problems = append(c.problems, fmt.Sprintf("%s: kuri run does not know this field", shown))
	}
}

// apply applies the rule of a set field, and returns the verdict on its value.
func (c *checker) apply(r rule, v reflect.Value, shown string) verdict {
	empty := (v.Kind() == reflect.Slice || v.Kind() == reflect.Map) && v.Len() == 0
	if r.verdict == honoured || empty || r.unless != nil && r.unless(v) {
		return honoured
	}
	if r.verdict == ignored {
		c.warnings = append(c.warnings, fmt.Sprintf("%s is ignored: %s", shown, r.why))
	} else {
		c.problems = append(c.problems, fmt.Sprintf("%s: %s", shown, r.why))
	}
	return r.verdict
}

// isLeaf reports whether a type is a single value in a manifest.
func isLeaf(t reflect.Type) bool {
	return t == reflect.TypeFor[resource.Quantity]() || t == reflect.TypeFor[metav1.Time]()
}

// jsonName returns the name of a field in a manifest. Inline fields have no name.
func jsonName(f reflect.StructField) (name string, inline bool) {
	name, _, _ = strings.Cut(f.Tag.Get("json"), ",")
	return name, f.Anonymous && name == ""
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
