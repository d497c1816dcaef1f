package e2e

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/test/harness"
)

func TestAppArmor(t *testing.T) {
	if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); !strings.HasPrefix(string(on), "Y") {
		t.Skip("SKIP: AppArmor is not enabled on this machine; make test-vm has it")
	}
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		t.Skip("SKIP: apparmor_parser is not installed")
	}
	s := newShell(t)
	profile := harness.Write(t, t.TempDir(), "profile",
		"profile kuri-test-nowrite flags=(attach_disconnected) { file, deny /** w, }\n")
	if out, err := exec.Command("apparmor_parser", "-Kr", profile).CombinedOutput(); err != nil {
		t.Fatalf("load a profile: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("apparmor_parser", "-R", profile).Run() })
	with := func(typ runtimeapi.SecurityProfile_ProfileType, ref string) func(*container, *security) {
		return func(_ *container, sc *security) {
			sc.Apparmor = &runtimeapi.SecurityProfile{ProfileType: typ, LocalhostRef: ref}
		}
	}
	const look = "cat /proc/self/attr/current; touch /x 2>/dev/null && echo written; true"
	for name, c := range map[string]struct {
		change func(*container, *security)
		want   string
	}{
		"nothing asked": {nil, "kuri-default (enforce)\nwritten\n"},
		"default":       {with(runtimeapi.SecurityProfile_RuntimeDefault, ""), "kuri-default (enforce)\nwritten\n"},
		"unconfined":    {with(runtimeapi.SecurityProfile_Unconfined, ""), "unconfined\nwritten\n"},
		"localhost":     {with(runtimeapi.SecurityProfile_Localhost, "kuri-test-nowrite"), "kuri-test-nowrite (enforce)\n"},
	} {
		if out := s.says(t, c.change, "sh", "-c", look); out != c.want {
			t.Errorf("%s: %q, want %q", name, out, c.want)
		}
		// Execs are confined like their container, with and without a terminal.
		id := s.run(t, c.change, "sleep", "1000")
		if out := s.Output(t, id, "sh", "-c", look); out != c.want {
			t.Errorf("%s, exec: %q, want %q", name, out, c.want)
		}
		x := onTerminal(t, s.Daemon, "exec", "-it", id, "--", "sh", "-c", "stty -onlcr; "+look+"; exit 3")
		x.expect(c.want)
		if code := x.exit(); code != 3 {
			t.Errorf("%s, exec on a terminal: exit code %d", name, code)
		}
	}
	wantForkServer(t, s.Daemon)
	harness.WantError(t, s.refuses(t, with(runtimeapi.SecurityProfile_Localhost, "kuri-test-absent"), "true"),
		codes.FailedPrecondition, "kuri-test-absent")
}

// Without AppArmor in the kernel a request with a profile fails, says why, and leaves nothing behind.
func TestAppArmorIsMissing(t *testing.T) {
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil &&
		strings.HasPrefix(string(on), "Y") {
		t.Skip("SKIP: this kernel has AppArmor; TestAppArmor tells its story")
	}
	s := newShell(t)
	err := s.refuses(t, func(_ *container, sc *security) {
		sc.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost,
			LocalhostRef: "some-profile"}
	}, "true")
	harness.WantError(t, err, codes.Unimplemented, "apparmor", "AppArmor")
	list, err := s.Runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) > 0 {
		t.Errorf("containers after a refusal: %v, %v", list, err)
	}
}
