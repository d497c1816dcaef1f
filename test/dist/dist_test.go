package dist

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/test/harness"
)

// made is the .deb of this tree, made once.
var made struct {
	dir, deb string
	err      error
}

func TestMain(m *testing.M) {
	var err error
	if made.dir, err = os.MkdirTemp("", "kuri-dist"); err == nil {
		made.deb, made.err = build(made.dir, "amd64", "UTC", 0o22)
	} else {
		made.err = err
	}
	code := m.Run()
	os.RemoveAll(made.dir)
	os.Exit(code)
}

// build makes a .deb of an architecture in a directory below dir.
func build(dir, arch, zone string, umask int) (string, error) {
	out := filepath.Join(dir, arch+"-"+strings.ReplaceAll(zone, "/", "-"))
	if err := makePackages(out, umask, "DIST_ONLY=deb", "DIST_ARCH="+arch, "TZ="+zone); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(out, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("scripts/dist made the packages %v: %v", debs, err)
	}
	return debs[0], nil
}

// makePackages runs scripts/dist, with env, for packages in the directory out.
func makePackages(out string, umask int, env ...string) error {
	cmd := exec.Command("bash", "-c", fmt.Sprintf(`umask %#o; exec scripts/dist "$1"`, umask), "dist", out)
	cmd.Dir = harness.Repository()
	version, err := exec.Command(filepath.Join(cmd.Dir, "bin", "kuri"), "--version").Output()
	if err != nil {
		return fmt.Errorf("bin/kuri does not tell its version, make all builds it: %w", err)
	}
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1796000000",
		"VERSION="+strings.TrimPrefix(strings.TrimSpace(string(version)), "kuri "))
	cmd.Env = append(cmd.Env, env...)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("scripts/dist: %w\n%s", err, text)
	}
	return nil
}

func deb(t *testing.T) string {
	t.Helper()
	if made.err != nil {
		t.Fatal(made.err)
	}
	return made.deb
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	text, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, text)
	}
	return string(text)
}

// The time zone, the umask and the moment of the build make no difference.
func TestSameBytesTwice(t *testing.T) {
	sameBytes(t, deb(t), "amd64")
}

// sameBytes fails t unless the package of an architecture is made of the same bytes again, elsewhere.
func sameBytes(t *testing.T, first, arch string) {
	t.Helper()
	second, err := build(t.TempDir(), arch, "Asia/Kathmandu", 0o77)
	if err != nil {
		t.Fatal(err)
	}
	a, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(second)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) || filepath.Base(first) != filepath.Base(second) {
		t.Errorf("%s has %d bytes, %s has %d, and they differ", first, len(a), second, len(b))
	}
}

// files is what the package puts on a node, directories that every Debian has aside.
const files = `
drwxr-xr-x /etc/kuri/
-rw-r--r-- /etc/kuri/config.toml
-rwxr-xr-x /usr/bin/kuri
-rwxr-xr-x /usr/bin/kuri-holder
-rwxr-xr-x /usr/bin/kuri-keeper
-rwxr-xr-x /usr/bin/kurid
-rw-r--r-- /usr/lib/modules-load.d/kuri.conf
-rw-r--r-- /usr/lib/sysctl.d/50-kuri.conf
-rw-r--r-- /usr/lib/systemd/system/kurid-handover.service
-rw-r--r-- /usr/lib/systemd/system/kurid.service
-rw-r--r-- /usr/lib/systemd/system/kurid.socket
-rw-r--r-- /usr/share/bash-completion/completions/kuri
drwxr-xr-x /usr/share/doc/kuri/
-rw-r--r-- /usr/share/doc/kuri/changelog.Debian.gz
-rw-r--r-- /usr/share/doc/kuri/changelog.gz
-rw-r--r-- /usr/share/doc/kuri/copyright
-rw-r--r-- /usr/share/doc/kuri/third-party-licenses.gz
-rw-r--r-- /usr/share/fish/vendor_completions.d/kuri.fish
-rw-r--r-- /usr/share/lintian/overrides/kuri
-rw-r--r-- /usr/share/man/man1/kuri.1.gz
-rw-r--r-- /usr/share/man/man8/kuri-holder.8.gz
-rw-r--r-- /usr/share/man/man8/kuri-keeper.8.gz
-rw-r--r-- /usr/share/man/man8/kurid.8.gz
-rw-r--r-- /usr/share/zsh/vendor-completions/_kuri
`

// entry is a line of dpkg-deb --contents: mode, owner, size, date, time, name.
var entry = regexp.MustCompile(`(?m)^(\S+) (\S+) +\d+ \S+ \S+ \.(/\S*)$`)

func TestContents(t *testing.T) {
	got, want := contents(t, deb(t)), strings.Split(strings.TrimSpace(files), "\n")
	if !sameFiles(got, want) {
		t.Errorf("the package has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// contents lists the files of a package with their modes, and the directories of its own. It fails
// t for a file that is not root's and a directory that is not for all to read.
func contents(t *testing.T, deb string) (files []string) {
	t.Helper()
	for _, m := range entry.FindAllStringSubmatch(output(t, "dpkg-deb", "--contents", deb), -1) {
		mode, owner, path := m[1], m[2], m[3]
		if owner != "root/root" && owner != "0/0" {
			t.Errorf("%s belongs to %s", path, owner)
		}
		if strings.HasPrefix(mode, "d") {
			if mode != "drwxr-xr-x" {
				t.Errorf("%s has the mode %s", path, mode)
			}
			if !strings.HasSuffix(path, "/kuri/") {
				continue
			}
		}
		files = append(files, mode+" "+path)
	}
	return files
}

// sameFiles reports whether two lists have the same lines, whatever their order, and sorts both by path.
func sameFiles(a, b []string) bool {
	byPath := func(a, b string) int { return strings.Compare(a[11:], b[11:]) }
	slices.SortFunc(a, byPath)
	slices.SortFunc(b, byPath)
	return slices.Equal(a, b)
}

func TestControl(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "package")
	output(t, "dpkg-deb", "--raw-extract", deb(t), dir)
	read := func(path ...string) string {
		t.Helper()
		body, err := os.ReadFile(filepath.Join(append([]string{dir}, path...)...))
		if err != nil {
			t.Error(err)
		}
		return string(body)
	}
	if got := strings.TrimSpace(read("DEBIAN", "conffiles")); got != "/etc/kuri/config.toml" {
		t.Errorf("the conffiles are %q", got)
	}
	control := read("DEBIAN", "control")
	for _, field := range []string{"Package: kuri", "Architecture: amd64", "Section: admin", "Maintainer: "} {
		if !regexp.MustCompile(`(?m)^` + field).MatchString(control) {
			t.Errorf("control has no %q:\n%s", field, control)
		}
	}
	if strings.Contains(control, "Depends:") {
		t.Errorf("the programs are static, and the package depends on something:\n%s", control)
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		output(t, "sh", "-n", filepath.Join(dir, "DEBIAN", script))
		if info, err := os.Stat(filepath.Join(dir, "DEBIAN", script)); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", script, info, err)
		}
	}
	for name, runs := range map[string]string{"kurid": "ExecStart=/usr/bin/kurid\n",
		"kurid-handover": "/usr/bin/kurid hand-over"} {
		if unit := read("usr/lib/systemd/system", name+".service"); !strings.Contains(unit, runs) ||
			strings.Contains(unit, "@") {
			t.Errorf("%s.service is\n%s", name, unit)
		}
	}
	for _, shell := range [][2]string{
		{"bash", "usr/share/bash-completion/completions/kuri"},
		{"zsh", "usr/share/zsh/vendor-completions/_kuri"},
		{"fish", "usr/share/fish/vendor_completions.d/kuri.fish"},
	} {
		if body := read(shell[1]); len(body) < 1000 {
			t.Errorf("the completion of %s is %q", shell[0], body)
		} else if _, err := exec.LookPath(shell[0]); err == nil {
			output(t, shell[0], "-n", filepath.Join(dir, shell[1]))
		}
	}
	manual := output(t, "gzip", "-dc", filepath.Join(dir, "usr/share/man/man1/kuri.1.gz"))
	verbs := regexp.MustCompile(`(?m)^  ([a-z][a-z-]*) +[A-Z]`).FindAllStringSubmatch(output(t,
		filepath.Join(dir, "usr/bin/kuri"), "help"), -1)
	if len(verbs) < 20 {
		t.Errorf("kuri help tells of %d verbs", len(verbs))
	}
	for _, verb := range verbs {
		if name := strings.ReplaceAll(verb[1], "-", `\-`); verb[1] != "help" &&
			!strings.Contains(manual, "\n.SS kuri "+name) {
			t.Errorf("kuri(1) has no section of %s", verb[1])
		}
	}
	licences := output(t, "gzip", "-dc", filepath.Join(dir, "usr/share/doc/kuri/third-party-licenses.gz"))
	for _, part := range []string{"github.com/opencontainers/runc ", "std 1.", "libc6-dev ", "libseccomp-dev ",
		"musl-dev "} {
		if !strings.Contains(licences, "\n"+part) {
			t.Errorf("the licences lack that of %s", part)
		}
	}
}

// dpkg installs the package on this machine's own files, with what it changes in an overlay of a
// mount namespace of its own: no systemd is seen there. It upgrades, removes and purges it.
func TestDpkg(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP: needs root")
	}
	work, err := os.MkdirTemp("/var/tmp", "kuri-dpkg") // not on an overlay itself
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(work) })
	next := filepath.Join(work, "next")
	output(t, "dpkg-deb", "--raw-extract", deb(t), next)
	output(t, "sed", "-i", "s/^Version: .*/Version: 99.0.0-1/", filepath.Join(next, "DEBIAN", "control"))
	output(t, "sed", "-i", "1i # The next version.", filepath.Join(next, "etc", "kuri", "config.toml"))
	output(t, "dpkg-deb", "--root-owner-group", "-Znone", "--build", next, filepath.Join(work, "next.deb"))
	output(t, "cp", deb(t), filepath.Join(work, "kuri.deb"))
	if err := os.WriteFile(filepath.Join(work, "story"), []byte(story), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "bash",
		filepath.Join(work, "story"), work).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !strings.HasSuffix(string(text), "\ndone\n") {
		t.Errorf("the story ends early:\n%s", text)
	}
}

const story = `
set -euo pipefail
work=$1
mkdir "$work"/{disk,root}
mount -t tmpfs tmpfs "$work/disk"
mkdir "$work"/disk/{upper,work}
mount -t overlay -o "lowerdir=/,upperdir=$work/disk/upper,workdir=$work/disk/work" overlay "$work/root"
for d in /run /etc/kuri /var/lib/kuri; do mkdir -p "$work/root$d"; mount -t tmpfs tmpfs "$work/root$d"; done
umount "$work/root/etc/kuri" "$work/root/var/lib/kuri"
rm -rf "$work/root/etc/kuri" "$work/root/var/lib/kuri"
mount -t proc proc "$work/root/proc"
mount -t devtmpfs devtmpfs "$work/root/dev" 2>/dev/null || mount --rbind /dev "$work/root/dev"
cp "$work"/{kuri,next}.deb "$work/root/run/"
inside() { chroot "$work/root" /usr/bin/env DEBIAN_FRONTEND=noninteractive "$@" </dev/null; }
quick="--force-unsafe-io --no-triggers"
fail() { echo "FAIL: $*"; exit 1; }

echo "= install"
inside dpkg $quick -i /run/kuri.deb
[ "$(inside kurid --version)" = "$(inside kuri --version | sed s/kuri/kurid/)" ] || fail "the programs do not run"
[ -L "$work/root/etc/systemd/system/multi-user.target.wants/kurid.service" ] || fail "the unit is not enabled"
[ ! -e "$work/root/etc/systemd/system/sockets.target.wants/kurid.socket" ] || fail "the socket is enabled"
[ -z "$(inside dpkg --verify kuri)" ] || fail "dpkg --verify: $(inside dpkg --verify kuri)"

echo "= upgrade, with a configuration of one's own and the unit disabled"
echo '# mine' >>"$work/root/etc/kuri/config.toml"
rm "$work/root/etc/systemd/system/multi-user.target.wants/kurid.service"
inside dpkg $quick --force-confold -i /run/next.deb
grep -q '^# mine' "$work/root/etc/kuri/config.toml" || fail "the administrator's configuration is gone"
[ -e "$work/root/etc/kuri/config.toml.dpkg-dist" ] || fail "the new configuration is not beside the administrator's"
[ ! -e "$work/root/etc/systemd/system/multi-user.target.wants/kurid.service" ] || fail "a disabled unit is enabled by an upgrade"

echo "= remove"
mkdir -p "$work"/root/var/lib/kuri/images
inside dpkg $quick -r kuri
[ ! -e "$work/root/usr/bin/kurid" ] || fail "kurid is left"
[ -e "$work/root/etc/kuri/config.toml" ] || fail "a removal takes the configuration away"
[ -e "$work/root/var/lib/kuri/images" ] || fail "a removal takes the images away"

echo "= purge, while a pod is there"
inside dpkg $quick -i /run/next.deb >/dev/null
inside dpkg $quick -r kuri >/dev/null
mkdir -p "$work/root/run/netns"
touch "$work/root/run/netns/kuri-0123"
said=$(inside dpkg $quick -P kuri 2>&1)
grep -q 'pods still run, so their files stay' <<<"$said" || fail "a purge says nothing of a pod: $said"
[ -e "$work/root/var/lib/kuri/images" ] || fail "a purge takes a pod's files away"

echo "= purge"
rm "$work/root/run/netns/kuri-0123"
inside dpkg $quick -i /run/kuri.deb >/dev/null
[ ! -L "$work/root/etc/systemd/system/kurid.service" ] || fail "the unit is masked after it was installed again"
inside dpkg $quick -P kuri
for path in /var/lib/kuri /run/kuri /etc/kuri /etc/systemd/system/multi-user.target.wants/kurid.service /usr/share/doc/kuri; do
	[ ! -e "$work/root$path" ] && [ ! -L "$work/root$path" ] || fail "a purge leaves $path: $(ls -la "$work/root$path")"
done
[ -z "$(inside dpkg-query -W -f '${Status}' kuri 2>/dev/null | grep -v 'not-installed')" ] || fail "dpkg still knows kuri"
echo done
`
