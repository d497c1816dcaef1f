package verifier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// program writes a shell script into dir.
func program(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func programs(t *testing.T, dir string) *Programs {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: each program has a PID namespace of its own")
	}
	return New(Options{Dir: dir, Timeout: 20 * time.Second, Scratch: t.TempDir()})
}

func subject() Image {
	return Image{
		Reference: "registry.example/app:1",
		Descriptor: imagespec.Descriptor{
			MediaType: imagespec.MediaTypeImageIndex, Digest: digest.FromString("index"), Size: 5,
		},
	}
}

// The contract with a program, as containerd defines it: arguments, standard input, environment.
func TestAProgramGetsArgumentsAndDescriptor(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	program(t, dir, "one", fmt.Sprintf(`printf '%%s\n' "$@" >%[1]s/args; cat >%[1]s/stdin; pwd >%[1]s/cwd; echo $$ >%[1]s/pid; echo "${DOCKER_CONFIG-none}" >%[1]s/auth; echo fine`, out))
	if err := programs(t, dir).Judge(t.Context(), subject()); err != nil {
		t.Fatal(err)
	}
	dgst := digest.FromString("index")
	for file, want := range map[string]string{
		"args": "-name\nregistry.example/app:1\n-digest\n" + dgst.String() +
			"\n-stdin-media-type\napplication/vnd.oci.descriptor.v1+json\n",
		"stdin": fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"%s","size":5}`, dgst) +
			"\n",
		"cwd":  "/\n",
		"pid":  "1\n",
		"auth": "none\n",
	} {
		got, err := os.ReadFile(filepath.Join(out, file))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", file, got, err, want)
		}
	}
}

func TestCredentialsAreShownAndRemoved(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	program(t, dir, "one", fmt.Sprintf(`cp "$DOCKER_CONFIG/config.json" %[1]s/auth && stat -c %%a "$DOCKER_CONFIG" "$DOCKER_CONFIG/config.json" >%[1]s/modes`, out))
	p := programs(t, dir)
	img := subject()
	img.Auth = []byte(`{"auths":{}}`)
	if err := p.Judge(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(out, "auth")); string(got) != string(img.Auth) {
		t.Errorf("the program found %q", got)
	}
	if got, _ := os.ReadFile(filepath.Join(out, "modes")); string(got) != "700\n600\n" {
		t.Errorf("modes %q", got)
	}
	if left, err := os.ReadDir(p.Scratch); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}

	// New removes directories of a killed daemon and nothing else.
	for _, name := range []string{"verify-1", "other"} {
		if err := os.Mkdir(filepath.Join(p.Scratch, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	New(p.Options)
	if left, _ := os.ReadDir(p.Scratch); len(left) != 1 || left[0].Name() != "other" {
		t.Errorf("left: %v", left)
	}
}

func TestVerdicts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: each program has a PID namespace of its own")
	}
	for name, row := range map[string]struct {
		programs map[string]string
		want     []string // parts of the refusal; nil: accepted
	}{
		"accepts":    {map[string]string{"a": "exit 0"}, nil},
		"all accept": {map[string]string{"a": "exit 0", "b": "echo ok"}, nil},
		"refuses": {map[string]string{"a": "echo 'no signature  of'; echo alice; exit 3"},
			[]string{"verifier a: ", "exit code 3", "no signature of alice"}},
		"one refuses": {map[string]string{"a": "exit 0", "b": "exit 1", "c": "exit 0"},
			[]string{"verifier b: ", "gives no reason"}},
		"says why to 2": {map[string]string{"a": "echo 'no key' >&2; exit 1"}, []string{"no key"}},
		"tricks":        {map[string]string{"a": `printf 'a\033[2Jb\377'; exit 1`}, []string{"a?[2Jb?"}},
		"reads nothing": {map[string]string{"a": "exec 0<&-; exit 0"}, nil},
		"much output": {map[string]string{"a": "head -c 9000000 /dev/zero; head -c 9000000 /dev/zero >&2; exit 0"},
			nil},
		"much, and refuses": {map[string]string{"a": "yes nonsense | head -c 9000000; exit 2"},
			[]string{"nonsense nonsense", "…"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, body := range row.programs {
				program(t, dir, file, body)
			}
			refused(t, programs(t, dir).Judge(t.Context(), subject()), row.want...)
		})
	}
}

// refused asserts that err is a refusal of bounded length that contains all parts, or nil if there
// are no parts.
func refused(t *testing.T, err error, parts ...string) {
	t.Helper()
	if len(parts) == 0 {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	var r *Refusal
	if !errors.As(err, &r) || len(r.Error()) > maxReason+200 {
		t.Fatalf("%v", err)
	}
	for _, part := range parts {
		if !strings.Contains(r.Error(), part) {
			t.Errorf("%q does not say %q", r, part)
		}
	}
}

// A program that cannot be run does not accept an image.
func TestDoubtMeansRefusal(t *testing.T) {
	dir := t.TempDir()
	p := programs(t, filepath.Join(dir, "absent"))
	refused(t, p.Judge(t.Context(), subject()), "absent", "not there", "image.verifier_dir")

	p.Dir = filepath.Join(dir, "empty")
	if err := os.Mkdir(p.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	refused(t, p.Judge(t.Context(), subject()), "is empty")

	p.Dir = program(t, dir, "file", "")
	refused(t, p.Judge(t.Context(), subject()), "cannot be read")

	for name, make := range map[string]func(path string) error{
		"not executable": func(path string) error { return os.WriteFile(path, []byte("#!/bin/sh\n"), 0o600) },
		"rubbish":        func(path string) error { return os.WriteFile(path, []byte("rubbish"), 0o700) },
		"a directory":    func(path string) error { return os.Mkdir(path, 0o700) },
		"a dead link":    func(path string) error { return os.Symlink("nowhere", path) },
	} {
		p.Dir = t.TempDir()
		if err := make(filepath.Join(p.Dir, "it")); err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			refused(t, p.Judge(t.Context(), subject()), "verifier it: ",
				"cannot be run")
		})
	}

	p.Dir = t.TempDir()
	for n := range MaxPrograms + 1 {
		program(t, p.Dir, fmt.Sprintf("p%02d", n), "exit 0")
	}
	refused(t, p.Judge(t.Context(), subject()), "11 files")
	if err := os.Remove(filepath.Join(p.Dir, "p00")); err != nil {
		t.Fatal(err)
	}
	refused(t, p.Judge(t.Context(), subject()))
}

// A program that times out is killed with all its descendants, even those in another session, those
// that ignore signals and those that hold the pipes.
func TestTimeoutKillsAllDescendants(t *testing.T) {
	dir := t.TempDir()
	beat := filepath.Join(t.TempDir(), "beat")
	program(t, dir, "hangs", fmt.Sprintf(`
setsid sh -c 'trap "" TERM HUP INT; while :; do echo x >>%[1]s; sleep 0.05; done' &
(setsid sleep 1000 &)
while :; do sleep 1; done`, beat))
	p := programs(t, dir)
	p.Timeout = 2 * time.Second
	began := time.Now()
	refused(t, p.Judge(t.Context(), subject()), "verifier hangs: ", "did not answer within 2s")
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	first := size(t, beat)
	time.Sleep(300 * time.Millisecond)
	if second := size(t, beat); first == 0 || second != first {
		t.Errorf("a process goes on: it wrote %d bytes, then %d", first, second)
	}
}

// Descendants of a program that exits by itself are killed as well.
func TestExitKillsAllDescendants(t *testing.T) {
	dir := t.TempDir()
	beat := filepath.Join(t.TempDir(), "beat")
	program(t, dir, "forks", fmt.Sprintf(`
setsid sh -c 'while :; do echo x >>%[1]s; sleep 0.05; done' &
while [ ! -s %[1]s ]; do sleep 0.05; done
echo accepted`, beat))
	began := time.Now()
	refused(t, programs(t, dir).Judge(t.Context(), subject()))
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s: the child held the pipe", took)
	}
	first := size(t, beat)
	time.Sleep(300 * time.Millisecond)
	if second := size(t, beat); first == 0 || second != first {
		t.Errorf("a process goes on: it wrote %d bytes, then %d", first, second)
	}
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// hanging starts a program that hangs, and returns its pid once it runs.
func hanging(t *testing.T, ctx context.Context) (pid int, verdict <-chan error) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "pid")
	// this /proc is the host's
	program(t, dir, "hangs", fmt.Sprintf("read pid rest </proc/self/stat; echo $pid >%s; while :; do sleep 1; done",
		file))
	p := programs(t, dir)
	done := make(chan error, 1)
	go func() { done <- p.Judge(ctx, subject()) }()
	for range 500 {
		if body, _ := os.ReadFile(file); strings.HasSuffix(string(body), "\n") {
			pid, err := strconv.Atoi(strings.TrimSpace(string(body)))
			if err != nil || pid < 2 {
				t.Fatalf("pid %q", body)
			}
			return pid, done
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the program does not run")
	return 0, nil
}

// Cancelling the pull is not a refusal.
func TestCancellationIsNoRefusal(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	pid, verdict := hanging(t, ctx)
	cancel()
	err := <-verdict
	var r *Refusal
	if errors.As(err, &r) || !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d: %v", pid, err)
	}
}

func TestAKilledProgramRefuses(t *testing.T) {
	pid, verdict := hanging(t, t.Context())
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	refused(t, <-verdict, "verifier hangs: ", "signal", "killed")
}

// Only the beginning of the output is kept.
func TestOutputIsBounded(t *testing.T) {
	b := &headBuffer{}
	if n, err := io.Copy(b, io.LimitReader(zeroes{}, 1<<20)); n != 1<<20 || err != nil || b.kept.Len() != maxOutput {
		t.Errorf("%d bytes copied, %v, %d kept", n, err, b.kept.Len())
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }
