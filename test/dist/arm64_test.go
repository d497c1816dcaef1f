package dist

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kuri-cri/kuri/test/harness"
)

// The package for arm64 has the same files. Its programs are static ones for that processor, which QEMU runs, and the
// licences are those of the libraries that are in them.
func TestArm64(t *testing.T) {
	cross := crossTools(t)
	arm64, err := build(t.TempDir(), "arm64", "UTC", 0o22)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := contents(t, arm64), strings.Split(strings.TrimSpace(files), "\n"); !sameFiles(got, want) {
		t.Errorf("the package has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	dir := filepath.Join(t.TempDir(), "package")
	output(t, "dpkg-deb", "--raw-extract", arm64, dir)
	if control := output(t, "cat", filepath.Join(dir, "DEBIAN", "control")); !strings.Contains(control,
		"\nArchitecture: arm64\n") {
		t.Errorf("control is\n%s", control)
	}
	for _, name := range []string{"kuri", "kurid", "kuri-keeper", "kuri-holder"} {
		path := filepath.Join(dir, "usr", "bin", name)
		program, err := elf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		interpreted := slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
		if program.Machine != elf.EM_AARCH64 || interpreted {
			t.Errorf("%s is for %v, with an interpreter: %v", name, program.Machine, interpreted)
		}
		program.Close()
		if said := output(t, filepath.Join(cross, "exec", "go_linux_arm64_exec"), path,
			"--version"); !strings.HasPrefix(said, name+" ") {
			t.Errorf("%s --version says %q", name, said)
		}
	}
	licences := output(t, "gzip", "-dc", filepath.Join(dir, "usr/share/doc/kuri/third-party-licenses.gz"))
	for _, part := range []string{"github.com/opencontainers/runc ", "libc6-dev-arm64-cross ", "libseccomp-dev ",
		"musl-dev "} {
		if !strings.Contains(licences, "\n"+part) {
			t.Errorf("the licences lack that of %s", part)
		}
	}
	sameBytes(t, arm64, "arm64")
}

// crossTools returns the directory of scripts/cross. It skips t unless the arm64 programs are built and QEMU is there.
func crossTools(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(harness.Repository(), "bin-arm64", "kurid")); err != nil {
		t.Skipf("SKIP: the programs for arm64 are not built (make arm64): %v", err)
	}
	cross, err := exec.Command(filepath.Join(harness.Repository(), "scripts", "cross")).Output()
	if err != nil {
		t.Skipf("SKIP: the cross compiler is not available (scripts/cross): %v", err)
	}
	return strings.TrimSpace(string(cross))
}

// The .rpm, the tar and the bill of materials for arm64 are those of amd64 with other programs: the same files, for
// the other architecture, made of the same Go modules.
func TestArm64LikeAmd64(t *testing.T) {
	crossTools(t)
	dir := t.TempDir()
	if err := makePackages(dir, 0o22); err != nil {
		t.Fatal(err)
	}
	one := func(pattern string) string {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %v, %v", pattern, found, err)
		}
		return found[0]
	}

	rpm, other := readRPM(t, one("*.aarch64.rpm")), readRPM(t, one("*.x86_64.rpm"))
	if rpm.arch != "aarch64" || other.arch != "x86_64" {
		t.Errorf("the architectures of the .rpm are %q and %q", rpm.arch, other.arch)
	}
	if !slices.Equal(rpm.files, other.files) || !slices.Contains(rpm.files, "/usr/bin/kuri-holder") {
		t.Errorf("the .rpm for arm64 has\n%q\nthat for amd64\n%q", rpm.files, other.files)
	}

	names, machines := readTar(t, one("kuri-*-linux-arm64.tar.gz"))
	otherNames, otherMachines := readTar(t, one("kuri-*-linux-amd64.tar.gz"))
	if !slices.Equal(names, otherNames) {
		t.Errorf("the tar for arm64 has\n%q\nthat for amd64\n%q", names, otherNames)
	}
	for _, name := range []string{"kuri", "kurid", "kuri-keeper", "kuri-holder"} {
		if a, b := machines["bin/"+name], otherMachines["bin/"+name]; a != elf.EM_AARCH64 || b != elf.EM_X86_64 {
			t.Errorf("%s is for %v in the tar for arm64, for %v in that for amd64", name, a, b)
		}
	}

	modules, libraries := readBill(t, one("kuri-*-linux-arm64.cdx.json"))
	otherModules, otherLibraries := readBill(t, one("kuri-*-linux-amd64.cdx.json"))
	if !slices.Equal(modules, otherModules) || len(modules) < 20 {
		t.Errorf("the bill for arm64 has the modules\n%q\nthat for amd64\n%q", modules, otherModules)
	}
	if len(libraries) != len(otherLibraries) || len(libraries) == 0 {
		t.Errorf("the C libraries for arm64 are %q, for amd64 %q", libraries, otherLibraries)
	}

	sums, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil || bytes.Count(sums, []byte("\n")) != 8 {
		t.Errorf("SHA256SUMS has not four files for each architecture: %v\n%s", err, sums)
	}
}

// readTar returns the names in a tar without its top directory, sorted, and the machines of its ELF programs by name.
func readTar(t *testing.T, path string) (names []string, machines map[string]elf.Machine) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	machines = make(map[string]elf.Machine)
	for r := tar.NewReader(unzipped); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return names, machines
		}
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		names = append(names, name)
		if !strings.HasPrefix(name, "bin/") || header.Typeflag != tar.TypeReg {
			continue
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		program, err := elf.NewFile(bytes.NewReader(body))
		if err != nil {
			t.Fatalf("%s in %s: %v", name, path, err)
		}
		machines[name] = program.Machine
	}
}

// readBill returns the Go modules, with versions, and the other components of a CycloneDX file, sorted.
func readBill(t *testing.T, path string) (modules, others []string) {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var bill struct {
		Components []struct{ PURL string }
	}
	if err := json.Unmarshal(body, &bill); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	for _, c := range bill.Components {
		if strings.HasPrefix(c.PURL, "pkg:golang/") {
			modules = append(modules, c.PURL)
		} else {
			others = append(others, c.PURL)
		}
	}
	slices.Sort(modules)
	return modules, others
}
