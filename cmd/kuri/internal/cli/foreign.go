package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// elsewhere maps commands of crictl, docker and kubectl to their names here.
var elsewhere = map[string]string{
	"apply":   "kuri run FILE",
	"up":      "kuri run FILE",
	"play":    "kuri run FILE",
	"compose": "kuri run FILE and kuri down FILE, for manifests of Kubernetes",
	"delete":  "kuri rm, or kuri down FILE", "rmp": "kuri rm, which takes pods too", "remove": "kuri rm",
	"stopp":          "kuri stop, which takes pods too",
	"kill":           "kuri stop --grace 0",
	"restart":        "kuri stop, kuri rm and kuri run FILE",
	"replace":        "kuri down FILE and kuri run FILE",
	"edit":           "kuri update for limits, else kuri down FILE and kuri run FILE",
	"statsp":         "kuri stats, or kuri top",
	"metricsp":       "kuri metrics",
	"checkpoint":     "not supported",
	"pause":          "not supported",
	"unpause":        "not supported",
	"runtime-config": "kuri info",
	"config":         "kuri info; the flags -r and -i, or /etc/crictl.yaml, say which runtime is asked",
	"wait":           "kuri attach, which ends with the container and its exit code",
	"port":           "kuri inspect",
	"rename":         "kuri run --name",
	"search":         "kuri pull",
	"push":           "not supported: kuri save, and a program that pushes",
	"build":          "not supported: kuri load takes what others build",
	"commit":         "not supported: kuri image diff and kuri cp show and copy what a container has changed",
	"volume":         "kuri run -v, or volumes in a manifest",
	"volumes":        "kuri run -v, or volumes in a manifest",
	"cluster-info":   "kuri info",
	"node":           "kuri info",
	"nodes":          "kuri info",
	"ingress":        "kuri port-forward",
	"expose":         "kuri port-forward, or kuri run -p",
	"scale":          "kuri run, once for each pod",
	"inspectp":       "kuri inspect", "inspecti": "kuri image inspect", "describe": "kuri inspect",
	"get":  "kuri pods, kuri ps or kuri images",
	"ls":   "kuri pods, kuri ps or kuri images",
	"list": "kuri pods, kuri ps or kuri images",
	"img":  "kuri images", "image-ls": "kuri images", "containers": "kuri ps", "container": "kuri ps", "pod": "kuri pods",
	"imagefsinfo": "kuri info",
	"export":      "kuri save",
	"import":      "kuri load",
	"system":      "kuri info or kuri prune",
	"forward":     "kuri port-forward",
	"copy":        "kuri cp", "log": "kuri logs", "sh": "kuri exec -it NAME sh", "remove-image": "kuri rmi",
}

// foreignVerb returns the error for a verb of another program among the arguments, or nil. Its
// flags belong to that program, too, so the search does not stop at an unknown flag.
func foreignVerb(args []string) error {
	for i, a := range args {
		if here, ok := elsewhere[a]; ok {
			here = cmp.Or(ofKind(a, args[i+1:]), here)
			if why, no := strings.CutPrefix(here, notSupported); no {
				return fmt.Errorf("there is no command %q: it is not supported%s", a, why)
			}
			return fmt.Errorf("there is no command %q: it is %s", a, here)
		}
	}
	return nil
}

// notSupported is the prefix of hints for verbs without a counterpart in kuri.
const notSupported = "not supported"

// foreignFlags maps flags of crictl, docker and kubectl to their names here.
var foreignFlags = map[string]string{
	"format":         "-o, --output",
	"filter":         "--name, --label or --state",
	"selector":       "--label",
	"digests":        "-o wide",
	"show-labels":    "-o wide",
	"last":           "--sort age, which is usual: the youngest comes first",
	"latest":         "--sort age, which is usual: the youngest comes first",
	"with-pull":      "nothing: a missing image is pulled anyway",
	"no-pull":        "--pull never",
	"signal":         "--grace 0 to kill at once",
	"namespace":      "NAMESPACE/POD in place of the pod's name",
	"n":              "NAMESPACE/POD in place of the pod's name",
	"c":              "POD/CONTAINER in place of the pod's name",
	"container":      "POD/CONTAINER in place of the pod's name",
	"d":              "nothing: this is how it works anyway",
	"time":           "--grace",
	"grace-period":   "--grace",
	"input":          "-o",
	"truncate":       "--no-trunc",
	"since-time":     "--since",
	"creds":          "kuri login",
	"all-namespaces": "nothing: all namespaces are listed anyway", "A": "nothing: all namespaces are listed anyway",
}

// ofVerb maps flags of other programs to what to do here instead, by the verb and the flag.
var ofVerb = map[string]string{
	"run restart":         "nothing restarts a container here, that is a kubelet's work",
	"run P":               "name the ports, -p 8080:80",
	"run publish-all":     "name the ports, -p 8080:80",
	"run link":            "pods reach each other at their addresses, which kuri pods shows",
	"run mount":           "use -v PATH:PATH[:ro] or --tmpfs PATH",
	"run volumes-from":    "containers that share volumes are one pod: write a manifest",
	"run gpus":            "devices are given by CDI, see docs/gpu.md",
	"run device":          "use --privileged for all devices, or CDI for single ones, see docs/gpu.md",
	"run ulimit":          "the limits of a process are the runtime's own",
	"run security-opt":    "use securityContext in a manifest, or --privileged",
	"run sysctl":          "use securityContext.sysctls in a manifest",
	"run group-add":       "use securityContext.supplementalGroups in a manifest",
	"run shm-size":        "use --tmpfs /dev/shm:size=64m",
	"run init":            "use shareProcessNamespace: true in a manifest, whose pod has a process that reaps",
	"run health-cmd":      "nothing probes a container here",
	"run no-healthcheck":  "nothing probes a container here",
	"run log-driver":      "logs are files of the CRI, which kuri logs reads",
	"run log-opt":         "logs are files of the CRI, which kuri logs reads",
	"run platform":        "images are pulled for this node's platform",
	"run expose":          "use -p 8080:80, or kuri port-forward",
	"run port":            "use -p 8080:80",
	"run image":           "the image is the first argument: kuri run --name NAME IMAGE",
	"run c":               "use --cpus",
	"run cpu-shares":      "use --cpus",
	"run net":             "use --network",
	"run n":               "use metadata.namespace in a manifest",
	"run namespace":       "use metadata.namespace in a manifest",
	"run restart-policy":  "nothing restarts a container here, that is a kubelet's work",
	"run memory-swap":     "the memory limit includes swap",
	"run q":               "progress goes to standard error",
	"run quiet":           "progress goes to standard error",
	"ps n":                "the youngest comes first: kuri ps | head",
	"ps latest":           "the youngest comes first: kuri ps | head -2",
	"ps last":             "the youngest comes first: kuri ps | head",
	"images a":            "all images are listed anyway",
	"images all":          "all images are listed anyway",
	"images filter":       "use --name",
	"images v":            "use -o wide or -o yaml",
	"pods v":              "use -o wide or -o yaml",
	"logs until":          "use --since and --tail",
	"logs l":              "name the pods, which kuri pods --label finds",
	"logs selector":       "name the pods, which kuri pods --label finds",
	"logs all-containers": "a pod's name means all its containers",
	"logs details":        "use --timestamps",
	"logs c":              "use POD/CONTAINER",
	"exec e":              "use kuri exec NAME -- env NAME=VALUE COMMAND",
	"exec env":            "use kuri exec NAME -- env NAME=VALUE COMMAND",
	"exec u":              "the CRI runs a command as the container's user",
	"exec user":           "the CRI runs a command as the container's user",
	"exec w":              "use kuri exec NAME -- sh -c 'cd DIR && COMMAND'",
	"exec workdir":        "use kuri exec NAME -- sh -c 'cd DIR && COMMAND'",
	"exec d":              "use your shell: kuri exec NAME -- COMMAND &",
	"exec detach":         "use your shell: kuri exec NAME -- COMMAND &",
	"exec privileged":     "use kuri debug --privileged",
	"exec s":              "--time-limit uses ExecSync", "exec sync": "--time-limit uses ExecSync",
	"inspect f":        "use -o go-template=TEMPLATE",
	"inspect format":   "use -o go-template=TEMPLATE",
	"inspect template": "use -o go-template=TEMPLATE",
	"inspect type":     "a name means a pod, a container or an image; kuri image inspect takes images only",
	"stats no-stream":  "without -f it is so anyway",
	"stats a":          "all running containers are shown anyway",
	"stats all":        "all running containers are shown anyway",
	"stats id":         "name it as an argument",
	"rm v":             "a pod's volumes are removed with it anyway",
	"rm volumes":       "a pod's volumes are removed with it anyway",
	"rmi a":            "use kuri prune",
	"rmi all":          "use kuri prune",
	"rmi prune":        "use kuri prune",
	"prune a":          "all unused images are removed anyway",
	"prune all":        "all unused images are removed anyway",
	"pull u":           "use --creds USER:PASSWORD or kuri login",
	"pull username":    "use --creds USER:PASSWORD or kuri login",
	"pull auth":        "use --creds USER:PASSWORD or kuri login",
	"pull platform":    "images are pulled for this node's platform",
	"pull q":           "progress goes to standard error",
	"pull quiet":       "progress goes to standard error",
	"pull a":           "name the tags",
	"pull all-tags":    "name the tags",
	"pull pod-config":  "it is not needed",
	"events w":         "use -f",
	"events watch":     "use -f",
	"events since":     "events are shown from now on; kuri trace shows how a pod started",
	"version client":   "kuri --version is this program's",
	"version short":    "kuri --version is one line",
	"create f":         "use kuri run FILE",
	"create filename":  "use kuri run FILE",
}

// foreignFlag returns a hint for a flag of another program.
func foreignFlag(cmd *cobra.Command, name string) string {
	if here, ok := ofVerb[cmd.Name()+" "+name]; ok {
		return ": " + here
	}
	if f := flagOfVerbs(cmd, name); f != "" {
		return ": it belongs after the verb, kuri VERB " + f
	}
	if here, ok := foreignFlags[name]; ok && cmd.HasParent() {
		if strings.HasPrefix(here, "--") && cmd.Flags().Lookup(strings.Trim(strings.Fields(here)[0], "-,:")) == nil {
			return ""
		}
		return " (here it is " + here + ")"
	}
	return ""
}

// flagOfVerbs returns a flag as it is spelt if cmd is the program itself and verbs have that flag, else "".
func flagOfVerbs(cmd *cobra.Command, name string) string {
	if cmd.HasParent() {
		return ""
	}
	for _, verb := range cmd.Commands() {
		if len(name) == 1 && verb.Flags().ShorthandLookup(name) != nil {
			return "-" + name
		}
		if len(name) > 1 && verb.Flags().Lookup(name) != nil {
			return "--" + name
		}
	}
	return ""
}

// foreignTimeout returns a hint for -t with the meaning of another program: the time to stop, or
// the times of log lines.
func foreignTimeout(cmd *cobra.Command, f *pflag.Flag, value string) string {
	switch {
	case f.Name != "timeout":
	case cmd.Flags().Lookup("grace") != nil:
		return "this is how long one call may take; the time to stop is --grace " + value
	case cmd.Name() == "logs":
		return "-t is how long one call may take; the times of the lines are --timestamps"
	}
	return ""
}

// ofKind returns the command for kubectl's get, describe or delete of a kind; "" if it depends on more.
func ofKind(verb string, args []string) string {
	if len(args) == 0 {
		return ""
	}
	kind, _, _ := strings.Cut(args[0], "/")
	switch kind {
	case "pod", "pods", "po":
		return map[string]string{"get": "kuri pods, or kuri inspect NAME", "describe": "kuri inspect NAME",
			"delete": "kuri rm NAME"}[verb]
	case "node", "nodes", "no":
		return map[string]string{"get": "kuri info", "describe": "kuri info"}[verb]
	case "event", "events", "ev":
		return map[string]string{"get": "kuri events"}[verb]
	case "-f", "--filename":
		return map[string]string{"delete": "kuri down FILE", "get": "kuri pods"}[verb]
	}
	if isKind(kind) && (verb == "get" || verb == "describe" || verb == "delete") {
		return "kuri pods: a runtime knows pods and containers, and no " + kind
	}
	return ""
}

// isKind reports whether a word is a kind of Kubernetes, as kubectl takes it.
func isKind(word string) bool {
	return slices.Contains(strings.Fields(`pod pods po deployment deployments deploy statefulset statefulsets sts daemonset daemonsets ds
		replicaset replicasets rs job jobs cronjob cronjobs cj service services svc configmap configmaps cm secret secrets ingress ing
		namespace namespaces ns pvc pv persistentvolumeclaim persistentvolume serviceaccount sa all`), word)
}

// KindHint returns a hint for a name with a kind, such as pod/web.
func KindHint(name string) string {
	kind, rest, ok := strings.Cut(name, "/")
	switch {
	case !ok || rest == "" || !isKind(kind):
		return ""
	case strings.HasPrefix(kind, "po"):
		return ": write " + rest + ", without the kind"
	}
	return ": a runtime knows pods and containers, and no " + kind
}
