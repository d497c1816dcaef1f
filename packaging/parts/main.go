// Command parts says what the programs of a release are made of: the licences that they are distributed under, and a
// bill of materials in CycloneDX 1.5.
//
//	parts -version VERSION -time SECONDS -licenses FILE -sbom FILE [-cross DIRECTORY] PROGRAM...
//
// The Go modules are read from the programs themselves, as the linker has recorded them; their
// licences lie in the module cache. The C libraries that are linked statically are described by
// their Debian packages: those installed here, or those that scripts/cross has unpacked into
// DIRECTORY. A module or library without a licence file is an error: it must not be shipped.
package main

import (
	"cmp"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// part is a module or a library, with the programs that it is in.
type part struct {
	name, version string
	purl          string // package URL, as CycloneDX has it
	sum           string // of the module, h1:…; empty for libraries
	programs      []string
	licences      []licence
}

// licence is the text of one file.
type licence struct{ file, text string }

// licenceFile matches the names that modules give to licences and notices.
var licenceFile = regexp.MustCompile(`(?i)^(un)?(licen[sc]e|copying|copyright|notice|patents)([.-].*)?$`)

// static are Debian's packages of the C libraries in a program, by the program's name. kuri-keeper
// has cgo, with libseccomp, and glibc; kuri-holder has musl.
var static = map[string][]string{
	"kuri-keeper": {"libc6-dev", "libseccomp-dev"},
	"kuri-holder": {"musl-dev"},
}

// crossName has the packages whose names differ in a cross compiler's sysroot.
var crossName = map[string]string{"libc6-dev": "libc6-dev-arm64-cross"}

func main() {
	version := flag.String("version", "", "`version` of the release")
	seconds := flag.Int64("time", 0, "time of the release, `seconds` since the epoch")
	licenses := flag.String("licenses", "", "`file` to write the licences to")
	sbom := flag.String("sbom", "", "`file` to write the bill of materials to")
	cross := flag.String("cross", "", "`directory` of scripts/cross, for programs that it built")
	flag.Parse()
	if flag.NArg() == 0 || *version == "" || *licenses == "" || *sbom == "" {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(flag.Args(), *version, time.Unix(*seconds, 0), *licenses, *sbom, *cross); err != nil {
		fmt.Fprintln(os.Stderr, "parts:", err)
		os.Exit(1)
	}
}

func run(programs []string, version string, at time.Time, licenses, sbom, cross string) error {
	parts, err := collect(programs, cross)
	if err != nil {
		return err
	}
	bill, err := json.MarshalIndent(describe(parts, version, at), "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(licenses, []byte(text(parts)), 0o644),
		os.WriteFile(sbom, append(bill, '\n'), 0o644))
}

// collect returns the parts of the programs, sorted by name. cross is the directory of scripts/cross, or "".
func collect(programs []string, cross string) ([]part, error) {
	dirs, err := moduleDirs()
	if err != nil {
		return nil, err
	}
	all := map[string]*part{}
	add := func(program string, p part) {
		key := p.name + "@" + p.version
		if all[key] == nil {
			all[key] = &p
		}
		all[key].programs = append(all[key].programs, program)
	}
	var bad []error
	for _, path := range programs {
		program := filepath.Base(path)
		for _, lib := range static[program] {
			p, err := debian(lib, cross)
			bad = append(bad, err)
			add(program, p)
		}
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			if len(static[program]) > 0 { // the holder is no Go program
				continue
			}
			return nil, fmt.Errorf("read the modules of %s: %w", path, err)
		}
		p, err := standard(info.GoVersion)
		bad = append(bad, err)
		add(program, p)
		for _, m := range info.Deps {
			p, err := module(m, dirs)
			bad = append(bad, err)
			add(program, p)
		}
	}
	parts := make([]part, 0, len(all))
	for _, p := range all {
		slices.Sort(p.programs)
		parts = append(parts, *p)
	}
	slices.SortFunc(parts, func(a, b part) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.version, b.version))
	})
	return parts, errors.Join(bad...)
}

// moduleDirs returns where the module cache has each module of the build list, by "path@version".
func moduleDirs() (map[string]string, error) {
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Path}}@{{.Version}} {{.Dir}}", "all")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the modules: %w", err)
	}
	dirs := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if name, dir, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			dirs[name] = dir
		}
	}
	return dirs, nil
}

func module(m *debug.Module, dirs map[string]string) (part, error) {
	if m.Replace != nil {
		m = m.Replace
	}
	p := part{name: m.Path, version: m.Version, sum: m.Sum, purl: "pkg:golang/" + m.Path + "@" + m.Version}
	dir := dirs[m.Path+"@"+m.Version]
	if dir == "" {
		return p, fmt.Errorf("%s %s is in a program and not in the module cache: run go mod download", m.Path, m.Version)
	}
	var err error
	p.licences, err = read(dir)
	return p, err
}

// standard is Go's own library, which is in every Go program.
func standard(version string) (part, error) {
	version = strings.TrimPrefix(version, "go")
	p := part{name: "std", version: version, purl: "pkg:golang/std@" + version}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return p, fmt.Errorf("ask for GOROOT: %w", err)
	}
	p.licences, err = read(strings.TrimSpace(string(root)))
	return p, err
}

// debian is a C library: an installed Debian package, or with cross not "" one that scripts/cross has unpacked there.
func debian(name, cross string) (part, error) {
	if other := crossName[name]; other != "" && cross != "" {
		name = other
	}
	p := part{name: name}
	var err error
	if p.version, err = packageVersion(name, cross); err != nil {
		return p, err
	}
	p.purl = "pkg:deb/debian/" + name + "@" + p.version
	file := filepath.Join(cmp.Or(cross, "/"), "usr/share/doc", name, "copyright")
	body, err := os.ReadFile(file)
	if err != nil {
		return p, fmt.Errorf("read the licence of %s: %w", name, err)
	}
	p.licences = []licence{{"copyright", string(body)}}
	return p, nil
}

// packageVersion returns the version of a Debian package, installed or listed in cross/packages.
func packageVersion(name, cross string) (string, error) {
	if cross == "" {
		out, err := exec.Command("dpkg-query", "-W", "-f", "${Version}", name).Output()
		if err != nil {
			return "", fmt.Errorf("ask for the version of the Debian package %s: %w", name, err)
		}
		return strings.TrimSpace(string(out)), nil
	}
	body, err := os.ReadFile(filepath.Join(cross, "packages"))
	if err != nil {
		return "", fmt.Errorf("ask for the version of the Debian package %s: %w", name, err)
	}
	for line := range strings.Lines(string(body)) {
		if version, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(version), nil
		}
	}
	return "", fmt.Errorf("ask for the version of the Debian package %s: %s/packages does not list it", name, cross)
}

// read returns the licences and notices in a directory. Without a licence it is an error.
func read(dir string) ([]licence, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []licence
	terms := false
	for _, e := range entries {
		if !licenceFile.MatchString(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		body, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, licence{e.Name(), string(body)})
		lower := strings.ToLower(e.Name())
		terms = terms || !strings.HasPrefix(lower, "notice") && !strings.HasPrefix(lower, "patents")
	}
	if !terms {
		return nil, fmt.Errorf("%s has no licence", dir)
	}
	return all, nil
}

// text is every licence once, below the names of the parts that have it.
func text(parts []part) string {
	owners := map[string][]string{}
	for _, p := range parts {
		for _, l := range p.licences {
			body := strings.TrimSpace(strings.ReplaceAll(l.text, "\r\n", "\n"))
			owners[body] = append(owners[body], fmt.Sprintf("%s %s (%s; in %s)", p.name, p.version, l.file,
				strings.Join(p.programs, ", ")))
		}
	}
	bodies := slices.SortedFunc(maps.Keys(owners),
		func(a, b string) int { return cmp.Compare(owners[a][0], owners[b][0]) })
	var b strings.Builder
	b.WriteString("Kuri is distributed under the Apache License 2.0. Its programs have the following parts in them, under the licences that follow each.\n")
	for _, body := range bodies {
		fmt.Fprintf(&b, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 100), strings.Join(owners[body], "\n"), body)
	}
	return b.String()
}

// What of CycloneDX 1.5 is written: https://cyclonedx.org/docs/1.5/json.
type (
	bill struct {
		Format     string      `json:"bomFormat"`
		Spec       string      `json:"specVersion"`
		Version    int         `json:"version"`
		Metadata   metadata    `json:"metadata"`
		Components []component `json:"components"`
	}
	metadata struct {
		Timestamp string    `json:"timestamp"`
		Component component `json:"component"`
	}
	component struct {
		Type       string     `json:"type"`
		Ref        string     `json:"bom-ref"`
		Name       string     `json:"name"`
		Version    string     `json:"version"`
		URL        string     `json:"purl,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
)

func describe(parts []part, version string, at time.Time) bill {
	b := bill{Format: "CycloneDX", Spec: "1.5", Version: 1}
	b.Metadata.Timestamp = at.UTC().Format(time.RFC3339)
	self := "pkg:golang/github.com/kuri-cri/kuri@v" + version
	b.Metadata.Component = component{Type: "application", Ref: self, Name: "kuri", Version: version, URL: self}
	for _, p := range parts {
		c := component{Type: "library", Ref: p.purl, Name: p.name, Version: p.version, URL: p.purl}
		for _, program := range p.programs {
			c.Properties = append(c.Properties, property{"kuri:program", program})
		}
		if p.sum != "" {
			c.Properties = append(c.Properties, property{"kuri:go.sum", p.sum})
		}
		b.Components = append(b.Components, c)
	}
	return b
}
