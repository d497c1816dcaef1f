package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/spec"
)

// layerOf makes a layer from files by name. The value "->x" is a link to x, "!" a whiteout, "o" an
// opaque directory, "d" a directory, "p" a named pipe.
func layerOf(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch {
		case strings.HasPrefix(body, "->"):
			err = os.Symlink(body[2:], p)
		case body == "!":
			err = unix.Mknod(p, unix.S_IFCHR, 0)
		case body == "o":
			if err = os.MkdirAll(p, 0o755); err == nil {
				err = unix.Setxattr(p, "trusted.overlay.opaque", []byte("y"), 0)
			}
		case body == "d":
			err = os.MkdirAll(p, 0o755)
		case body == "p":
			err = unix.Mkfifo(p, 0o600)
		default:
			err = os.WriteFile(p, []byte(body), 0o644)
		}
		if errors.Is(err, unix.EPERM) {
			t.Skip("whiteouts and opaque directories need root")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

type (
	security = runtime.LinuxContainerSecurityContext
	number64 = runtime.Int64Value
)

func TestUser(t *testing.T) {
	layers := []string{layerOf(t, map[string]string{
		"etc/passwd": "# a comment\nroot:x:0:0:root:/root:/bin/sh\nbroken\nwww-data:x:33:33::/:\ndefault-user:x:1000:1000::/:\nbig:x:4294967295:0::/:\n77:x:8:9::/:\n\nodd:x:7:9",
		"etc/group":  "root:x:0:\nwheel:x:10:root,www-data\nwww-data:x:33:\ngroup-defined-in-image:x:50000:default-user\nbad:x:-1:default-user\n",
	})}
	for _, c := range []struct {
		name  string
		sc    *security
		image string
		want  spec.ResolvedUser
		err   string
	}{
		{name: "root by default, with its groups", want: spec.ResolvedUser{AdditionalGIDs: []uint32{0, 10}}},
		{name: "image user by number", image: "1002", want: spec.ResolvedUser{UID: 1002, AdditionalGIDs: []uint32{0}}},
		{name: "image user by name", image: "www-data",
			want: spec.ResolvedUser{UID: 33, GID: 33, AdditionalGIDs: []uint32{10, 33}}},
		{name: "image user and group by number", image: "1003:1004",
			want: spec.ResolvedUser{UID: 1003, GID: 1004, AdditionalGIDs: []uint32{1004}}},
		{name: "image user by name, group by number", image: "www-data:1004",
			want: spec.ResolvedUser{UID: 33, GID: 1004, AdditionalGIDs: []uint32{10, 1004}}},
		{name: "image group by name", image: "5:wheel",
			want: spec.ResolvedUser{UID: 5, GID: 10, AdditionalGIDs: []uint32{10}}},
		{name: "image group alone", image: ":33", want: spec.ResolvedUser{GID: 33, AdditionalGIDs: []uint32{10, 33}}},
		{name: "last line without an end", image: "odd",
			want: spec.ResolvedUser{UID: 7, GID: 9, AdditionalGIDs: []uint32{9}}},
		{
			name: "merge", sc: &security{RunAsUser: &number64{Value: 1000},
				SupplementalGroups: []int64{1234, 1234, 1000}},
			want: spec.ResolvedUser{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000, 1234, 50000}},
		},
		{
			name: "strict",
			sc: &security{RunAsUser: &number64{Value: 1000}, SupplementalGroups: []int64{1234},
				SupplementalGroupsPolicy: runtime.SupplementalGroupsPolicy_Strict},
			want: spec.ResolvedUser{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000, 1234}},
		},
		{
			name: "asked user beats the image's, and its group", image: "www-data:wheel",
			sc:   &security{RunAsUser: &number64{Value: 4000}},
			want: spec.ResolvedUser{UID: 4000, AdditionalGIDs: []uint32{0}},
		},
		{
			name: "asked name and group", sc: &security{RunAsUsername: "www-data", RunAsGroup: &number64{Value: 0}},
			want: spec.ResolvedUser{UID: 33, AdditionalGIDs: []uint32{0, 10}},
		},
		{name: "no such name", sc: &security{RunAsUsername: "nobody-here"},
			err: `run_as_username: no user "nobody-here" in /etc/passwd`},
		{name: "name that is a number", sc: &security{RunAsUsername: "1000"},
			want: spec.ResolvedUser{UID: 1000, GID: 1000, AdditionalGIDs: []uint32{1000, 50000}}},
		{name: "name that is an unknown number", sc: &security{RunAsUsername: "1002"},
			want: spec.ResolvedUser{UID: 1002, AdditionalGIDs: []uint32{0}}},
		{name: "name that is a user's and a number", sc: &security{RunAsUsername: "77"},
			want: spec.ResolvedUser{UID: 8, GID: 9, AdditionalGIDs: []uint32{9}}},
		{name: "number that is a user's name", sc: &security{RunAsUser: &number64{Value: 77}},
			want: spec.ResolvedUser{UID: 77, AdditionalGIDs: []uint32{0}}},
		{name: "name with a group", sc: &security{RunAsUsername: "www-data:wheel"},
			want: spec.ResolvedUser{UID: 33, GID: 10, AdditionalGIDs: []uint32{10}}},
		{name: "numbers for names", sc: &security{RunAsUsername: "1002:7"},
			want: spec.ResolvedUser{UID: 1002, GID: 7, AdditionalGIDs: []uint32{7}}},
		{name: "name with another group", sc: &security{RunAsUsername: "1002:7", RunAsGroup: &number64{Value: 5}},
			want: spec.ResolvedUser{UID: 1002, GID: 5, AdditionalGIDs: []uint32{5}}},
		{name: "name of a group alone", sc: &security{RunAsUsername: ":wheel"}, err: `no user ":wheel"`},
		{name: "name with an unknown group", sc: &security{RunAsUsername: "root:ghost"},
			err: `run_as_username: no group "ghost"`},
		{name: "name that is too high", sc: &security{RunAsUsername: "4294967295"}, err: "is not a user id"},
		{name: "no such image user", image: "ghost", err: `the image's user: no user "ghost" in /etc/passwd`},
		{name: "no such image group", image: "0:ghost", err: `the image's group: no group "ghost" in /etc/group`},
		{name: "uid too high", image: "4294967295", err: "is not a user id"},
		{name: "uid far too high", image: "99999999999999999999", err: "is not a user id"},
		{name: "negative uid", sc: &security{RunAsUser: &number64{Value: -1}}, err: "is not a user id"},
		{name: "negative gid", sc: &security{RunAsUser: &number64{}, RunAsGroup: &number64{Value: -1}},
			err: "is not a group id"},
		{name: "bad supplemental group", sc: &security{SupplementalGroups: []int64{1 << 32}},
			err: "supplemental_groups"},
		{name: "group without user", sc: &security{RunAsGroup: &number64{Value: 1}}, image: "1000",
			err: "run_as_group"},
		{name: "user twice", sc: &security{RunAsUser: &number64{}, RunAsUsername: "root"}, err: "run_as_username"},
		{name: "unknown policy", sc: &security{SupplementalGroupsPolicy: 9}, err: "supplemental_groups_policy"},
		{name: "entry with an id that is none", image: "big", err: `no user "big"`},
	} {
		got, err := User(layers, c.sc, c.image)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || fault.Of(err) != fault.Invalid {
				t.Errorf("%s: %v, want an error with %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil || got.UID != c.want.UID || got.GID != c.want.GID ||
			!slices.Equal(got.AdditionalGIDs, c.want.AdditionalGIDs) {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, c.want)
		}
	}
	if u, err := User(nil, nil, "12:13"); err != nil || u.UID != 12 || u.GID != 13 {
		t.Errorf("an image without files: %+v, %v", u, err)
	}
}

// TestFilesAreReadAsOverlayfsShowsThem puts the right uid into the file that overlayfs shows, and a
// wrong one into each hidden file.
func TestFilesAreReadAsOverlayfsShowsThem(t *testing.T) {
	const right, wrong = "u:x:1:1:::\n", "u:x:666:666:::\n"
	type files = map[string]string
	for _, c := range []struct {
		name   string
		layers []files // top first
		absent bool
		err    string
	}{
		{name: "the top one counts", layers: []files{{"etc/passwd": right}, {"etc/passwd": wrong}}},
		{name: "a directory is merged", layers: []files{{"etc/group": "g:x:1:\n"}, {"etc/passwd": right},
			{"etc/passwd": wrong}}},
		{name: "a whiteout hides", layers: []files{{"etc/passwd": "!"}, {"etc/passwd": wrong}}, absent: true},
		{name: "a whiteout of the directory hides", layers: []files{{"etc": "!"}, {"etc/passwd": wrong}}, absent: true},
		{name: "an opaque directory hides", layers: []files{{"etc": "o"}, {"etc/passwd": wrong}}, absent: true},
		{name: "made anew over a whiteout", layers: []files{{"etc/passwd": right}, {"etc": "!"},
			{"etc/passwd": wrong}}},
		{name: "a file hides a directory", layers: []files{{"etc": "x"}, {"etc/passwd": wrong}}, absent: true},
		{name: "a directory over a file", layers: []files{{"etc/passwd": right}, {"etc": "x"}, {"etc/passwd": wrong}}},
		{name: "a relative link", layers: []files{{"etc/passwd": "->../usr/passwd"}, {"usr/passwd": right}}},
		{name: "a link to a directory of a lower layer",
			layers: []files{{"etc": "->/usr/etc"}, {"usr/etc/passwd": right}}},
		{name: "a link up and out stays inside",
			layers: []files{{"etc/passwd": "->../../../../../usr/passwd", "usr/passwd": right}}},
		{name: "a link is hidden by a directory above",
			layers: []files{{"etc/passwd": right}, {"etc": "->/wrong"}, {"wrong/passwd": wrong}}},
		{name: "the host's own file is out of reach", layers: []files{{"etc/passwd": "->/proc/self/root/etc/passwd"}},
			absent: true},
		{name: "a dangling link", layers: []files{{"etc/passwd": "->nowhere"}}, absent: true},
		{name: "a circle", layers: []files{{"etc/passwd": "->group", "etc/group": "->passwd"}},
			err: "too many symbolic links"},
		{name: "a directory", layers: []files{{"etc/passwd": "d"}}, err: "is a directory"},
		{name: "a pipe", layers: []files{{"etc/passwd": "p"}}, err: "not a regular file"},
		{name: "too large", layers: []files{{"etc/passwd": strings.Repeat("x", maxFile+1)}}, err: "larger than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var dirs []string
			for _, l := range c.layers {
				dirs = append(dirs, layerOf(t, l))
			}
			got, err := User(dirs, nil, "u")
			switch {
			case c.absent:
				if err == nil || !strings.Contains(err.Error(), "no user") {
					t.Errorf("%+v, %v", got, err)
				}
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) || fault.Of(err) != fault.Invalid {
					t.Errorf("%+v, %v", got, err)
				}
			case err != nil || got.UID != 1:
				t.Errorf("%+v, %v", got, err)
			}
			if c.err == "" {
				compareWithOverlay(t, dirs, c.absent)
			}
		})
	}
}

// compareWithOverlay mounts the layers and compares with the kernel's view.
func compareWithOverlay(t *testing.T, dirs []string, absent bool) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: the kernel's view is not compared")
	}
	target := t.TempDir()
	lower := strings.Join(append(slices.Clone(dirs), t.TempDir(), t.TempDir()), ":") // overlayfs needs two
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "lowerdir="+lower); err != nil {
		t.Skipf("no overlayfs to compare with: %v", err)
	}
	defer unix.Unmount(target, unix.MNT_DETACH)
	fd, err := unix.Openat2(unix.AT_FDCWD, target, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	file, err := unix.Openat2(fd, "etc/passwd", &unix.OpenHow{Flags: unix.O_RDONLY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err == nil {
		unix.Close(file)
	}
	if (err != nil) != absent {
		t.Errorf("the kernel says %v, we expect absent %v", err, absent)
	}
}

func FuzzUser(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", "wheel:x:10:root\n", "root:wheel", "")
	f.Add("a:b", ":::", "1:2", "a")
	f.Fuzz(func(t *testing.T, passwd, group, imageUser, username string) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, body := range map[string]string{"passwd": passwd, "group": group} {
			if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(body), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		u, err := User([]string{dir}, &security{RunAsUsername: username}, imageUser)
		if err != nil {
			if fault.Of(err) != fault.Invalid {
				t.Fatalf("kind %q: %v", fault.Of(err), err)
			}
			return
		}
		if !slices.IsSorted(u.AdditionalGIDs) || !slices.Contains(u.AdditionalGIDs, u.GID) {
			t.Fatalf("%+v", u)
		}
	})
}
