package oci

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// copier runs copy.c, which is also part of this test program.
func copier(t testing.TB, in io.Reader, args ...string) (out []byte, said string, code int) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args, cmd.Env, cmd.Stdin = args, []string{"_KURI_COPY=1"}, in
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return stdout.Bytes(), stderr.String(), cmd.ProcessState.ExitCode()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listing returns the files below a directory: kind and mode, name, and content or target.
func listing(t testing.TB, dir string) (all []string) {
	t.Helper()
	must(t, filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		line := info.Mode().String() + " " + name
		switch {
		case info.Mode().IsRegular():
			body, err := os.ReadFile(p)
			must(t, err)
			line += fmt.Sprintf(" %d %.20q", len(body), body)
		case info.Mode().Type() == os.ModeSymlink:
			target, err := os.Readlink(p)
			must(t, err)
			line += " -> " + target
		}
		all = append(all, line)
		return nil
	}))
	slices.Sort(all)
	return all
}

// Packing creates a tar, and unpacking it restores the same files: modes, times, links, long names,
// and files that are empty, one block, one byte more, or have a hole.
func TestCopierThereAndBack(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(filepath.Join(src, "tree/sub/deep"), 0o755))
	for name, body := range map[string]string{
		"empty": "", "block": strings.Repeat("b", 512), "more": strings.Repeat("m", 513), "big": strings.Repeat("big ",
			1<<18),
		"sub/deep/f": "chestnut", "Kastanie-süß": "süß", "-dash": "-", "with\nline": "x",
		strings.Repeat("n", 100): "at the edge", strings.Repeat("n", 101): "beyond it", strings.Repeat("long", 60): "long",
	} {
		must(t, os.WriteFile(filepath.Join(src, "tree", name), []byte(body), 0o640))
	}
	must(t, os.Truncate(filepath.Join(src, "tree/empty"), 0))
	must(t, os.Chmod(filepath.Join(src, "tree/block"), 0o4711|os.ModeSetuid))
	must(t, os.Symlink("../elsewhere", filepath.Join(src, "tree/l")))
	must(t, os.Symlink(strings.Repeat("t", 101), filepath.Join(src, "tree/sub/long")))
	must(t, os.Chtimes(filepath.Join(src, "tree/more"), time.Unix(1e9, 0), time.Unix(1e9, 0)))
	must(t, os.Chtimes(filepath.Join(src, "tree/sub"), time.Unix(2e9, 0), time.Unix(2e9, 0)))
	must(t, os.Chmod(filepath.Join(src, "tree/sub/deep"), 0o555))
	defer os.Chmod(filepath.Join(src, "tree/sub/deep"), 0o755)

	packed, said, code := copier(t, nil, "pack", src, "tree")
	if code != 0 || said != "" {
		t.Fatalf("pack: exit code %d: %s", code, said)
	}
	entries := 0
	for in := tar.NewReader(bytes.NewReader(packed)); ; entries++ {
		if _, err := in.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		_, err := io.Copy(io.Discard, in)
		must(t, err)
	}
	if entries != 16 {
		t.Errorf("%d entries", entries)
	}
	for range 2 { // the second time over existing files
		if _, said, code := copier(t, bytes.NewReader(packed), "unpack", dst); code != 0 || said != "" {
			t.Fatalf("unpack: exit code %d: %s", code, said)
		}
	}
	defer os.Chmod(filepath.Join(dst, "tree/sub/deep"), 0o755)
	if got, want := listing(t, dst), listing(t, src); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for name, at := range map[string]int64{"tree/more": 1e9, "tree/sub": 2e9} {
		if info, err := os.Stat(filepath.Join(dst, name)); err != nil || info.ModTime().Unix() != at {
			t.Errorf("%s is of %v, %v", name, info.ModTime(), err)
		}
	}
}

// Files whose contents the kernel generates are packed completely.
func TestCopierPacksWhatHasNoSize(t *testing.T) {
	for _, path := range []string{"/proc/self/limits", "/proc/kallsyms", "/sys/kernel/mm/transparent_hugepage/enabled",
		"/proc/sys/kernel/ostype"} {
		want, err := os.ReadFile(path)
		if err != nil {
			t.Logf("SKIP: %s is not on this kernel: %v", path, err)
			continue
		}
		out, said, code := copier(t, nil, "pack", filepath.Dir(path), filepath.Base(path))
		h, body := only(t, out)
		if code != 0 || said != "" || h.Name != filepath.Base(path) || !bytes.Equal(body, want) {
			t.Errorf("%s: %d bytes of %d, exit code %d, %q", path, len(body), len(want), code, said)
		}
	}
	// A file without an end is not packed, and is reported.
	if _, err := os.Stat("/proc/kcore"); err == nil {
		if out, said, code := copier(t, nil, "pack", "/proc", "kcore"); code != 1 || said == "" || len(out) > 2048 {
			t.Errorf("/proc/kcore: %d bytes, exit code %d, %q", len(out), code, said)
		}
	}
}

// A file that changes while it is packed: one that grows is packed up to its first size, one that
// shrinks is padded and reported.
func TestCopierPacksWhatChanges(t *testing.T) {
	const size = 8 << 20 // more than a pipe holds
	for name, change := range map[string]struct {
		change func(path string) error
		code   int
		said   string
	}{
		"grows": {func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			must(t, err)
			_, err = f.Write(bytes.Repeat([]byte("b"), size))
			return errors.Join(err, f.Close())
		}, 0, ""},
		"shrinks":         {func(path string) error { return os.Truncate(path, size/2) }, 1, "became shorter"},
		"is removed":      {os.Remove, 0, ""},
		"becomes nothing": {func(path string) error { return os.Truncate(path, 0) }, 1, "became shorter"},
	} {
		path := filepath.Join(t.TempDir(), "f")
		must(t, os.WriteFile(path, bytes.Repeat([]byte("a"), size), 0o600))
		cmd := exec.Command("/proc/self/exe")
		cmd.Args, cmd.Env = []string{"pack", filepath.Dir(path), "f"}, []string{"_KURI_COPY=1"}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		r := tar.NewReader(stdout)
		h, err := r.Next() // the packer now waits until the rest is read
		must(t, err)
		must(t, change.change(path))
		body, err := io.ReadAll(r)
		must(t, err)
		_, err = r.Next()
		cmd.Wait()
		if h.Size != size || len(body) != size || !errors.Is(err, io.EOF) || len(bytes.Trim(body, "a\x00")) > 0 {
			t.Errorf("%s: %d bytes of %d: %v", name, len(body), h.Size, err)
		}
		if code := cmd.ProcessState.ExitCode(); code != change.code || !strings.Contains(stderr.String(), change.said) {
			t.Errorf("%s: exit code %d, %q", name, code, stderr.String())
		}
	}
}

// only returns the only entry of a tar.
func only(t *testing.T, archive []byte) (*tar.Header, []byte) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	h, err := r.Next()
	must(t, err)
	body, err := io.ReadAll(r)
	must(t, err)
	if _, err := r.Next(); err != io.EOF {
		t.Fatalf("after the entry: %v", err)
	}
	return h, body
}

// Only regular files are opened, and a growing file has an end. Unreadable files are reported and
// do not affect others.
func TestCopierPacksWhatIsHostile(t *testing.T) {
	src := t.TempDir()
	must(t, os.Mkdir(filepath.Join(src, "d"), 0o755))
	must(t, unix.Mkfifo(filepath.Join(src, "d/fifo"), 0o644))
	must(t, unix.Mknod(filepath.Join(src, "d/socket"), unix.S_IFSOCK|0o644, 0))
	must(t, os.WriteFile(filepath.Join(src, "d/grows"), []byte("x"), 0o644))
	must(t, os.WriteFile(filepath.Join(src, "d/last"), []byte("last"), 0o644))
	if os.Geteuid() == 0 {
		must(t, unix.Mknod(filepath.Join(src, "d/zero"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))))
	}
	deep := filepath.Join(src, "d")
	for range 2500 { // longer than PATH_MAX
		deep = filepath.Join(deep, "dd")
		if os.Mkdir(deep, 0o755) != nil {
			break
		}
	}
	stop := make(chan struct{})
	grown := make(chan struct{})
	go func() {
		defer close(grown)
		f, err := os.OpenFile(filepath.Join(src, "d/grows"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return
		}
		defer f.Close()
		for size := 0; size < 64<<20; size += 64 << 10 {
			select {
			case <-stop:
				return
			default:
			}
			_, _ = f.Write(make([]byte, 64<<10))
		}
	}()
	packed, said, code := copier(t, nil, "pack", src, "d")
	close(stop)
	<-grown
	if code != 1 || !strings.Contains(said, "too deep") && !strings.Contains(said, "too long") {
		t.Errorf("exit code %d: %.200s", code, said)
	}
	kinds := map[string]byte{}
	for in := tar.NewReader(bytes.NewReader(packed)); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		kinds[strings.TrimPrefix(h.Name, "d/")] = h.Typeflag
	}
	if kinds["fifo"] != tar.TypeFifo || kinds["socket"] != 0 || kinds["grows"] != tar.TypeReg ||
		kinds["last"] != tar.TypeReg {
		t.Errorf("%v", kinds)
	}
	if os.Geteuid() == 0 && kinds["zero"] != tar.TypeChar {
		t.Errorf("%v", kinds)
	}
}

func gnuTar(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		h.Format, h.ModTime, h.Mode = tar.FormatGNU, time.Unix(1e9, 0), 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = "content"
			h.Size = 7
		}
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, body)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// Names cannot lead out of the directory, and parents are created. Existing files are replaced or
// reported.
func TestCopierUnpacks(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: name} }
	for name, c := range map[string]struct {
		entries []tar.Header
		there   string // a resulting file; "" for none
		code    int
		says    string
	}{
		"a parent that is not there": {[]tar.Header{file("new/sub/f")}, "new/sub/f", 0, ""},
		"absolute":                   {[]tar.Header{file("/abs")}, "abs", 0, ""},
		"up":                         {[]tar.Header{file("../up")}, "", 1, "leads out"},
		"up within":                  {[]tar.Header{file("a/../../up")}, "", 1, "leads out"},
		"two dots in a name":         {[]tar.Header{file("..f")}, "..f", 0, ""},
		"over a directory":           {[]tar.Header{file("full")}, "", 1, "full"},
		"over an empty one":          {[]tar.Header{file("hollow")}, "hollow", 0, ""},
		"over a link":                {[]tar.Header{file("link")}, "link", 0, ""},
		"below a file":               {[]tar.Header{file("victim/f")}, "", 1, "victim/f"},
		"a directory over a file":    {[]tar.Header{{Typeflag: tar.TypeDir, Name: "victim"}}, "", 1, "victim"},
		"a hard link": {[]tar.Header{file("one"), {Typeflag: tar.TypeLink, Name: "two", Linkname: "one"}},
			"two", 0, ""},
		"a hard link to itself": {[]tar.Header{file("one"), {Typeflag: tar.TypeLink, Name: "one", Linkname: "one"}},
			"one", 0, ""},
		"a hard link out": {[]tar.Header{{Typeflag: tar.TypeLink, Name: "two", Linkname: "../beside"}}, "", 1,
			"leads out"},
		"a device": {[]tar.Header{{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3},
			file("after")}, "after", 1, "neither file"},
		"a symbolic link": {[]tar.Header{{Typeflag: tar.TypeSymlink, Name: "s", Linkname: "victim"}}, "s", 0, ""},
		"nothing":         {nil, "", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "dir")
			must(t, os.MkdirAll(filepath.Join(dir, "full/f"), 0o755))
			must(t, os.Mkdir(filepath.Join(dir, "hollow"), 0o755))
			must(t, os.WriteFile(filepath.Join(parent, "beside"), []byte("whole"), 0o644))
			must(t, os.WriteFile(filepath.Join(dir, "victim"), []byte("content"), 0o644))
			must(t, os.Symlink("../beside", filepath.Join(dir, "link")))
			_, said, code := copier(t, bytes.NewReader(gnuTar(t, c.entries...)), "unpack", dir)
			if code != c.code || !strings.Contains(said, c.says) || (code == 0) != (said == "") {
				t.Errorf("exit code %d: %s", code, said)
			}
			if body, err := os.ReadFile(filepath.Join(dir, c.there)); c.there != "" &&
				(err != nil || string(body) != "content") {
				t.Errorf("%s: %q, %v", c.there, body, err)
			}
			if body, err := os.ReadFile(filepath.Join(parent, "beside")); err != nil || string(body) != "whole" {
				t.Errorf("beside it: %q, %v", body, err)
			}
			if got := listing(t, parent); strings.Contains(strings.Join(got, "\n"), ".kuri-cp-") ||
				slices.ContainsFunc(got, func(s string) bool { return strings.HasSuffix(s, " up") }) {
				t.Errorf("there is %q", got)
			}
		})
	}
}

// A truncated tar is reported, wherever it ends, and leaves no incomplete file.
func TestCopierHalfATar(t *testing.T) {
	whole := gnuTar(t, tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("n", 150)},
		tar.Header{Typeflag: tar.TypeReg, Name: "second"})
	for n := 1; n < len(whole)-1024; n += 61 {
		dir := t.TempDir()
		_, said, code := copier(t, bytes.NewReader(whole[:n]), "unpack", dir)
		complete := n%512 == 0 // without a sign of more entries
		if !complete && (code != 2 || !strings.Contains(said, "ends in the middle")) {
			t.Errorf("after %d bytes: exit code %d: %s", n, code, said)
		}
		for _, line := range listing(t, dir) {
			if !strings.HasSuffix(line, ` 7 "content"`) {
				t.Errorf("after %d bytes there is %s", n, line)
			}
		}
	}
}

// Invalid arguments, missing directories and input that is not a tar are errors.
func TestCopierRefuses(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), nil, 0o644))
	for _, c := range []struct {
		args []string
		in   string
		code int
	}{
		{[]string{"pack", dir, "nosuch"}, "", 3},
		{[]string{"pack", dir + "/nosuch", "f"}, "", 3},
		{[]string{"pack", dir + "/f", "f"}, "", 4},
		{[]string{"unpack", dir + "/f"}, "", 4},
		{[]string{"pack", dir, strings.Repeat("x/", 3000)}, "", 2},
		{[]string{"pack", dir}, "", 2},
		{[]string{"unpack", dir + "/nosuch"}, "", 3},
		{[]string{"unpack", dir}, strings.Repeat("no tar ", 100), 2},
		{[]string{"unpack"}, "", 2},
		{[]string{"isdir", dir}, "", 0},
		{[]string{"isdir", dir + "/f"}, "", 1},
		{[]string{"isdir", dir + "/nosuch"}, "", 1},
		{[]string{"rm", dir}, "", 2},
	} {
		if _, said, code := copier(t, strings.NewReader(c.in), c.args...); code != c.code {
			t.Errorf("%.60q: exit code %d: %s", c.args, code, said)
		}
	}
}

// No tar crashes or hangs the copier. (It may write outside its directory through a link in the
// tar, as any process of the container may.)
func FuzzCopier(f *testing.F) {
	f.Add(gnuTar(f, tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("n", 150)},
		tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: strings.Repeat("t", 150)}), 3, byte('x'))
	f.Add(gnuTar(f, tar.Header{Typeflag: tar.TypeDir, Name: "d"},
		tar.Header{Typeflag: tar.TypeLink, Name: "d/f", Linkname: "../x"}), 124, byte(0x80))
	f.Fuzz(func(t *testing.T, body []byte, at int, with byte) {
		if at >= 0 && at < len(body) { // with a correct checksum
			body = bytes.Clone(body)
			body[at] = with
			if from := at / 512 * 512; from+512 <= len(body) {
				h := body[from : from+512]
				copy(h[148:156], "        ")
				sum := 0
				for _, c := range h {
					sum += int(c)
				}
				copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
			}
		}
		_, said, code := copier(t, bytes.NewReader(body), "unpack", t.TempDir())
		if code < 0 || code > 3 {
			t.Errorf("exit code %d: %s", code, said)
		}
	})
}
