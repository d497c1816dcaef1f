package main

import "github.com/spf13/cobra"

// examples has the examples in the help of verbs that do not define their own.
var examples = map[string]string{
	"kuri check": `  kuri check                     what this node can do, and what is to be mended
  kuri check -q                  only what is to be mended
  kuri check -o json             for programs
  kuri check --images --repair   read all that is stored of the images, and fetch again what is damaged`,
	"kuri cp": `  kuri cp web:/etc/nginx/nginx.conf .   a file out of the container of the pod web
  kuri cp ./html/. web/server:/srv      what is in a directory, into a container
  kuri cp web:/var/log - | tar tf -     as a tar`,
	"kuri events": `  kuri events                  what happens from now on
  kuri events -f -p web        to one pod, also after a restart of the runtime
  kuri events -n 1 -o json     the next one, with the status of its pod`,
	"kuri history":       "  kuri history nginx:1",
	"kuri image check":   "  kuri image check --repair",
	"kuri image diff":    "  kuri image diff web:1         the files of each layer\n  kuri image diff web:1 web:2   the files in which two images differ",
	"kuri image inspect": "  kuri image inspect nginx:1 -o jsonpath={.status.size}",
	"kuri info":          "  kuri info\n  kuri info -o jsonpath={.status.conditions}",
	"kuri inspect":       "  kuri inspect web\n  kuri inspect web/server -o json\n  kuri inspect web/server -o jsonpath={.status.exitCode}",
	"kuri login":         "  kuri login registry.example\n  kuri login -u me --password-stdin registry.example <password",
	"kuri logout":        "  kuri logout registry.example",
	"kuri network prune": "  kuri network prune",
	"kuri prune":         "  kuri prune      show, ask and remove\n  kuri prune -f   without the question",
	"kuri pull":          "  kuri pull nginx:1\n  kuri pull --creds - registry.example/web:1 <credentials",
	"kuri rm":            "  kuri rm web        a pod that was stopped, with its containers\n  kuri rm -f web     one that runs, too\n  kuri rm -f -a      all pods",
	"kuri rmi":           "  kuri rmi nginx:1\n  kuri rmi 2f3e4d5c6b7a   by the beginning of its id",
	"kuri save":          "  kuri save -o web.tar web:1\n  kuri save -o layout/ web:1 web:2\n  kuri save web:1 | ssh other kuri load -",
	"kuri stats":         "  kuri stats --sort memory\n  kuri stats -f web   of one pod, every second",
	"kuri stop":          "  kuri stop web          a pod, with its own grace period\n  kuri stop -g 0 web     kill it\n  kuri stop web/server   one container",
	"kuri version":       "  kuri version\n  kuri version -o json",
	"kuri help":          "  kuri help image diff",
}

// addExamples adds examples to the commands below cmd that have none.
func addExamples(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		path := sub.CommandPath()
		if sub.HasParent() && sub.Parent().Name() == "image" && examples[path] == "" { // the same verb, within its group
			path = map[string]string{"ls": "kuri images", "rm": "kuri rmi"}[sub.Name()]
			if path == "" {
				path = "kuri " + sub.Name()
			}
		}
		if sub.Example == "" {
			sub.Example = examples[path]
		}
		addExamples(sub)
	}
}
