package e2e

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

// TestCLI runs the scripts of testdata, each against a daemon of its own. Scripts find kuri in PATH
// and the daemon through the environment, as crictl would. They have these variables:
//
//	$BUSYBOX, $WEB  references of images in the registry that the daemon has not pulled
//	$PRIVATE        the reference of an image in a registry that requires me:s3cret
//	$ARCHIVE        the example's image as `docker save` would write it, named localhost/kuri-web:1
//	$LATEST         another archive, of 127.0.0.1:1/web:latest, where no registry listens
func TestCLI(t *testing.T) {
	scripts, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatal("no scripts", err)
	}
	archive, latest := saved(t, "localhost/kuri-web:1"), saved(t, "127.0.0.1:1/web:latest")
	for _, script := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(script), ".txtar"), func(t *testing.T) {
			d := harness.Start(t, harness.Options{})
			private := harness.NewRegistry(t)
			hidden := private.Push(t, "busybox:1", harness.Busybox(t))
			private.Intercept(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if user, password, _ := r.BasicAuth(); user == "me" && password == "s3cret" {
					next.ServeHTTP(w, r)
					return
				}
				w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
				w.WriteHeader(http.StatusUnauthorized)
			})
			vars := append(d.Env(), "ARCHIVE="+archive, "LATEST="+latest, "PRIVATE="+hidden, "PRIVATE_HOST="+private.Host,
				"REGISTRY="+d.Registry.Host, "SOCKET="+d.Socket,
				"BUSYBOX="+d.Registry.Push(t, "busybox:1", harness.Busybox(t)), "WEB="+d.Registry.Push(t, "web:1", harness.Web(t)))
			testscript.Run(t, testscript.Params{
				Files: []string{script},
				Setup: func(env *testscript.Env) error {
					env.Vars = append(env.Vars, vars...)
					env.Setenv("PATH", filepath.Dir(harness.Bin("kuri"))+":"+env.Getenv("PATH"))
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "expand": expand, "page": page, "rotate": rotate(d)},
			})
		})
	}
}

// saved returns an archive of the example's image with the name as, in the format of `docker save`.
func saved(t *testing.T, as string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "web.tar")
	ref, err := name.NewTag(as)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, ref, harness.Web(t)); err != nil {
		t.Fatal(err)
	}
	return path
}

// exits N COMMAND... runs a command that must exit with N.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("it exits %d, want %d", got, want)
	}
}

// rotate POD STAMP renames the log of a pod's only container and has it reopened, as a kubelet does.
func rotate(d *harness.Daemon) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) != 2 {
			ts.Fatalf("usage: rotate POD STAMP")
		}
		logs, err := filepath.Glob(filepath.Join(ts.Getenv("WORK"), "logs", "*_"+args[0]+"_*", "*", "0.log"))
		ts.Check(err)
		ts.Check(ts.Exec("kuri", "ps", "-q", "--pod", args[0]))
		if len(logs) != 1 {
			ts.Fatalf("logs of %s: %q", args[0], logs)
		}
		ts.Check(os.Rename(logs[0], logs[0]+"."+args[1]))
		_, err = d.Runtime.ReopenContainerLog(context.Background(),
			&runtimeapi.ReopenContainerLogRequest{ContainerId: strings.TrimSpace(ts.ReadFile("stdout"))})
		ts.Check(err)
	}
}

// expand FILE... replaces $NAME in files with the variables of the script.
func expand(ts *testscript.TestScript, neg bool, args []string) {
	for _, a := range args {
		path := ts.MkAbs(a)
		text, err := os.ReadFile(path)
		ts.Check(err)
		ts.Check(os.WriteFile(path, []byte(os.Expand(string(text), ts.Getenv)), 0o644))
	}
}

// page POD TEXT fetches http://ADDRESS:8080/ of a pod from the node. The response must contain TEXT.
func page(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: page POD TEXT")
	}
	ts.Check(ts.Exec("sh", "-c", `a=$(kuri inspect "$1" -o json | sed -n 's/.*"ip": *"\([0-9.]*\)".*/\1/p' | head -n 1)
		[ -n "$a" ] && curl -sS --fail --retry 20 --retry-connrefused --retry-delay 1 "http://$a:8080/"`, "page", args[0]))
	if out := ts.ReadFile("stdout"); !strings.Contains(out, args[1]) {
		ts.Fatalf("the page is:\n%s", out)
	}
}

// A verb acts on exactly the objects it names: a name takes precedence over an id prefix, an exited
// container keeps its name, and an ambiguous word is an error.
func TestKuriNames(t *testing.T) {
	d := harness.Start(t, harness.Options{})
	image := d.PullBusybox(t)
	run := func(pod, name string, command ...string) string {
		t.Helper()
		config := harness.HostNetwork(harness.Pod(pod))
		return d.Run(t, d.RunPod(t, config), harness.Container(name, image, command...), config)
	}
	other := run("other", "c", "sleep", "1000")
	short := other[:2]
	run(short, "main", "sh", "-c", "echo mine > /who; exec sleep 1000")
	gone := run("gone", "a", "true")
	d.WaitExit(t, gone)
	run("twin", "twin", "sleep", "1000")
	run("double", "twin", "sleep", "1000")
	file := harness.Write(t, t.TempDir(), "f", "x")

	for _, tt := range []struct {
		code int
		says string // on either output
		args string
	}{
		{0, "mine", "exec SHORT -- cat /who"},
		{0, "", "cp FILE SHORT:/x"},
		{1, "can't open '/x'", "exec other -- cat /x"}, // where no file was copied to
		{0, "", "exec id:OTHER -- true"},
		{3, "id:UNIQUE", "exec UNIQUE -- true"},
		{3, "id:UNIQUE", "stop UNIQUE"},
		{1, "gone/a (container", "exec a -- true"},
		{1, "has exited", "exec gone -- true"},
		{1, "has exited", "cp FILE a:/x"},
		{1, "has exited", "attach a"},
		{0, "", "logs a"},
		{1, "means several", "exec twin -- true"},
		{1, "double/twin", "cp FILE twin:/x"},
		{1, "twin/twin", "attach twin"},
		{0, "", "exec twin/twin -- true"},
		{3, "", "stop nobody"},
		{0, "SHORT", "rm -f SHORT"},
		{3, "id:SHORT", "exec SHORT -- true"}, // now that no other container has the name
		{3, "id:SHORT", "rm -f SHORT"},
		{0, "", "exec other -- true"},
	} {
		names := strings.NewReplacer("SHORT", short, "UNIQUE", other[:7], "OTHER", other, "FILE", file)
		args, says := names.Replace(tt.args), names.Replace(tt.says)
		out, errs, code := d.Kuri(t, strings.Fields(args)...)
		if code != tt.code || !strings.Contains(out+errs, says) {
			t.Errorf("kuri %s: exit code %d, want %d with %q: %s%s", args, code, tt.code, says, out, errs)
		}
	}
}
