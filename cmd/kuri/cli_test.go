package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

func TestExitCodesOfUsageAndReach(t *testing.T) {
	none := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	config := map[string]string{"CRI_CONFIG_FILE": emptyFile(t)}
	manifest := filepath.Join(t.TempDir(), "bad.yaml")
	if err := os.WriteFile(manifest, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i, imagePolicy: x}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args string
		code int
		says string
	}{
		{"", 0, ""},
		{"--help", 0, ""},
		{"exec --help", 0, ""},
		{"completion bash", 0, ""},
		{"completion", 0, ""},
		{"completion tcsh", 2, `there is no command "kuri completion tcsh"`},
		{"pids", 2, `no command "pids": did you mean pods`},
		{"pods --nope", 2, "unknown flag: --nope"},
		{"pods extra", 2, "extra"},
		{"exec web", 2, `missing argument after "web": kuri exec [flags] CONTAINER [--] COMMAND [ARG...]`},
		{"exec", 2, "missing arguments: kuri exec"},
		{"exec", 2, "kuri: see kuri exec --help"},
		{"image rm", 2, "see kuri image rm --help"},
		{"inspect a b", 2, `unexpected argument "b": kuri inspect NAME`},
		{"image nope", 2, `there is no command "kuri image nope"`},
		{"rmp x", 2, "kuri rm"},
		{"get pods", 2, "kuri pods"},
		{"get", 2, "it is kuri pods, kuri ps or kuri images"},
		{"logs --tail x web", 2, `--tail "x": expected a whole number`},
		{"stop -g 1.5 web", 2, `--grace "1.5": expected a whole number`},
		{"pods -l nonsense", 2, `--label "nonsense": expected KEY=VALUE`},
		{"-t 5 pods", 2, `--timeout "5": expected a duration with its unit: 5s?`},
		{"-t soon pods", 2, `--timeout "soon": expected a duration such as`},
		{"ps -a=maybe", 2, `--all "maybe": expected true or false`},
		{"logs --folow web", 2, "unknown flag: --folow: did you mean --follow?"},
		{"ps -Z", 2, "unknown flag: -Z"},
		{"ps --format x", 2, "(here it is -o, --output)"},
		{"run --restart always busybox", 2, "unknown flag: --restart: nothing restarts a container here"},
		{"run -P busybox", 2, "unknown flag: -P: name the ports, -p 8080:80"},
		{"run -c 2 busybox", 2, "unknown flag: -c: use --cpus"},
		{"run --image=busybox web", 2, "unknown flag: --image: the image is the first argument: kuri run --name NAME IMAGE"},
		{"run web --image=busybox", 2, "kuri run --name web busybox"},
		{"ps -n 1", 2, "unknown flag: -n: the youngest comes first: kuri ps | head"},
		{"ps -s", 2, "-s (--state) needs a value, STATE"},
		{"pods --label", 2, "--label needs a value, KEY=VALUE"},
		{"images busybox", 2, "--name busybox selects by name"},
		{"stop -t 5 web", 2, `--timeout "5": this is how long one call may take; the time to stop is --grace 5`},
		{"logs -t --tail 1 web", 2, "the times of the lines are --timestamps"},
		{"exec -e A=b web env", 2, "unknown flag: -e: use kuri exec NAME -- env NAME=VALUE COMMAND"},
		{"inspect -f {{.status}} web", 2, "unknown flag: -f: use -o go-template=TEMPLATE"},
		{"-o json ps", 2, "unknown flag: -o: it belongs after the verb, kuri VERB -o"},
		{"network ls", 2, `there is no command "kuri network ls": it has prune`},
		{"get pod web -o yaml", 2, "it is kuri pods, or kuri inspect NAME"},
		{"get deploy", 2, "a runtime knows pods and containers, and no deploy"},
		{"describe node", 2, "it is kuri info"},
		{"delete -f web.yaml", 2, "it is kuri down FILE"},
		{"create -f web.yaml", 2, "unknown flag: -f: use kuri run FILE"},
		{"load -i /does/not/exist.tar", 3, "no such file"},
		{"load -i a b", 2, `unexpected argument "b"`},
		{"down -f /does/not/exist.yaml", 3, "no such file"},
		{"down -f a b", 2, `unexpected argument "b"`},
		{"port-forward web 99999", 2, "a number from 1 to 65535"},
		{"port-forward web 1:2:3", 2, "PORT or LOCAL:PORT"},
		{"logs --tail -5 web", 2, "--tail -5"},
		{"stop -g -5 web", 2, "--grace -5"},
		{"exec --time-limit -5s web ls", 2, "cannot be negative"},
		{"ps --filter name=x", 2, "(here it is --name, --label or --state)"},
		{"apply -f web.yaml", 2, "there is no command \"apply\": it is kuri run FILE"},
		{"inspectp -o json x", 2, "it is kuri inspect"},
		{"push x", 2, "there is no command \"push\": it is not supported: kuri save"},
		{"debug web", 2, "which command? kuri debug -it web for a shell, or kuri debug web -- COMMAND"},
		{"debug", 2, "missing arguments: kuri debug [flags] NAME [-- COMMAND [ARG...]]"},
		{"debug -t web", 2, "-t gives a terminal to type at, so it goes with -i"},
		{"daemon stats", 2, "there is no command \"kuri daemon stats\": did you mean stacks or state?"},
		{"down", 2, "missing arguments: kuri down FILE"},
		{"down /does/not/exist.yaml", 3, "no such file"},
		{"run --configmap x busybox", 2, "--configmap and --secret are for a manifest"},
		{"run --configmap /does/not/exist.yaml " + manifest, 3, "--configmap: open /does/not/exist.yaml"},
		{"runp " + manifest, 1, "is not a PodSandboxConfig of the CRI: it has no field \"apiVersion\"; this is a manifest of Kubernetes, which kuri run takes"},
		{"create web x", 2, "missing argument after \"x\""},
		{"tag web", 2, "missing argument after \"web\""},
		{"help nosuch", 2, `there is no command "nosuch"`},
		{"help image nosuch", 2, `there is no command "kuri image nosuch"`},
		{"help image ls", 0, ""},
		{"run /", 1, "/ is a directory"},
		{"run /dev/null", 1, ""},
		{"exec --detach-keys ctrl-1 web sh", 2, `"ctrl-1" is neither a character`},
		{"attach --detach-keys ab web", 2, "--detach-keys"},
		{"exec web --", 2, "which command?"},
		{"pods -o xml", 2, "expected table, wide, json, yaml, jsonpath=TEMPLATE or go-template=TEMPLATE"},
		{"pods -o json=x", 2, "expected table"},
		{"pods -o jsonpath={.items[", 2, "-o jsonpath"},
		{"pods -o jsonpath", 2, "expected a template"},
		{"pods -o go-template={{.x", 2, "-o go-template"},
		{"pods --sort weight", 2, `--sort "weight": expected age, name`},
		{"pods --name (", 2, "not a regular expression: missing closing"},
		{"pods --state up", 2, `--state "up": expected ready, notready`},
		{"ps --state SANDBOX_READY", 2, "expected created, running"},
		{"exec web -it", 2, "which command?"},
		{"exec web -c", 2, "-c (--container) needs a value, CONTAINER"},
		{"inspect ''", 2, "argument 1 is empty: is a variable not set?"},
		{"rmi busybox ''", 2, "argument 2 is empty"},
		{"tag busybox ''", 2, "argument 2 is empty"},
		{"cp web:/x ''", 2, "argument 2 is empty"},
		{"exec '' true", 2, "argument 1 is empty"},
		{"-r " + none + " exec web printf ''", 4, "cannot reach"}, // an argument of the command
		{"ps -q --pod ''", 2, "--pod is empty: is a variable not set?"},
		{"images --name ''", 2, "--name is empty"},
		{"events -p ''", 2, "--pod is empty"},
		{"ps -o go-template={{.x", 2, "-o go-template={{.x: unclosed action\n"},
		{"--version", 0, ""},
		{"-r tcp://127.0.0.1:1 pods", 2, "TCP is not supported"},
		{"-t -5s pods", 2, "negative"},
		{"stop", 2, "either names, or --all"},
		{"rm --all web", 2, "either names, or --all"},
		{"logs --since yesterday web", 2, "--since"},
		{"pull --creds nonsense x", 2, "USER:PASSWORD"},
		{"run /does/not/exist.yaml", 3, "no such file"},
		{"run " + manifest, 1, `unknown field "spec.containers[0].imagePolicy"`},
		{"load /does/not/exist.tar", 3, "no such file"},
		{"load " + t.TempDir(), 1, "without an oci-layout"},
		{"-r " + none + " pods", 4, "cannot reach a CRI runtime at " + none + ": no such file"},
		{"-t 5s -r " + none + " exec web -- ls -la", 4, "cannot reach"},
		{"pods -r " + none, 4, "--runtime-endpoint names another socket"},
		{"-r " + none + " version", 4, "cannot reach"},
		{"-r " + none + " -i " + none + " images", 4, "cannot reach"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			c, _, errs := clitest.New(config)
			if code := c.Main(context.Background(), root(c), words(tt.args)); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.Contains(errs.String(), tt.says) || tt.code == 0 && errs.Len() > 0 {
				t.Errorf("says %q, want %q", errs, tt.says)
			}
		})
	}
}

// words splits a command line at spaces, where ” is an empty word.
func words(line string) []string {
	out := strings.Fields(line)
	for i, w := range out {
		out[i] = strings.ReplaceAll(w, "''", "")
	}
	return out
}

func emptyFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "crictl.yaml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestInterrupted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path) // never accepts
	if err != nil {
		t.Skip(err) // the path of the temporary directory is too long
	}
	defer l.Close()
	ctx, cancel := context.WithCancelCause(context.Background())
	time.AfterFunc(100*time.Millisecond, func() { cancel(cli.Interrupt{Signal: syscall.SIGTERM}) })
	c, _, errs := clitest.New(map[string]string{"CRI_CONFIG_FILE": emptyFile(t)})
	if code := c.Main(ctx, root(c), []string{"-r", "unix://" + path, "pods"}); code != 128+15 || !strings.Contains(errs.String(), "interrupted (terminated)") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	ctrlC, cancel := context.WithCancelCause(context.Background())
	cancel(cli.Interrupt{Signal: syscall.SIGINT})
	c, _, errs = clitest.New(nil)
	if code := c.Exit(ctrlC, ctrlC.Err()); code != 128+2 || errs.String() != "kuri: interrupted\n" {
		t.Errorf("exit code %d: %q", code, errs)
	}
	c, _, errs = clitest.New(nil)
	left := errors.Join(ctx.Err(), cli.Leftover("remove pod p: stuck"))
	if code := c.Exit(ctx, left); code != 128+15 || !strings.Contains(errs.String(), "remove pod p: stuck") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}
