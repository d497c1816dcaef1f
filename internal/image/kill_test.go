package image

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/layer"
	"github.com/kuri-cri/kuri/internal/registry"
)

// The child process of the tests pulls and removes images until it is killed.
const (
	childRoot = "KURI_TEST_CHILD_ROOT"
	childRefs = "KURI_TEST_CHILD_REFS"
	childOnce = "KURI_TEST_CHILD_ONCE" // pull the first image, print "idle", wait for a line, pull the second
)

func TestMain(m *testing.M) {
	if root := os.Getenv(childRoot); root != "" {
		fmt.Fprintln(os.Stderr, busyChild(root, strings.Fields(os.Getenv(childRefs))))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func busyChild(root string, refs []string) error {
	layers, err := layer.Open(root)
	if err != nil {
		return err
	}
	s, err := Open(context.Background(), Options{Root: root, Layers: layers})
	if err != nil {
		return err
	}
	if os.Getenv(childOnce) != "" {
		return pullTwo(s, refs)
	}
	fmt.Println("ready")
	for n := 0; ; n++ {
		if _, err := s.Pull(context.Background(), refs[n%len(refs)], registry.Auth{}); err != nil {
			return err
		}
		if err := s.Remove(refs[(n+1)%len(refs)]); err != nil {
			return err
		}
	}
}

func pullTwo(s *Store, refs []string) error {
	if _, err := s.Pull(context.Background(), refs[0], registry.Auth{}); err != nil {
		return err
	}
	debug.FreeOSMemory()
	fmt.Println("idle")
	lines := bufio.NewScanner(os.Stdin)
	lines.Scan()
	if _, err := s.Pull(context.Background(), refs[1], registry.Auth{}); err != nil {
		return err
	}
	fmt.Println("pulled")
	lines.Scan()
	return nil
}

func TestKilledAtAnyPoint(t *testing.T) {
	needRoot(t)
	h := newHub(t)
	shared := layerOf(t, file{"shared", strings.Repeat("s", 300_000)})
	var refs []string
	for i := range 3 {
		own := layerOf(t, file{fmt.Sprintf("home/own%d", i), strings.Repeat("o", 100_000)})
		refs = append(refs, h.push(fmt.Sprintf("app:%d", i), imageOf(t, fmt.Sprint(i), shared, own)))
	}
	root := t.TempDir()
	for kill := range 30 {
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), childRoot+"="+root, childRefs+"="+strings.Join(refs, " "))
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		said := new(strings.Builder)
		child.Stderr = said
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 10)); err != nil {
			t.Fatalf("the child did not start: %v", err)
		}
		time.Sleep(time.Duration(kill*kill) * 137 * time.Microsecond)
		child.Process.Kill()
		child.Wait()
		if said.Len() > 0 {
			t.Fatalf("kill %d: the store was in disorder: %s", kill, said)
		}

		s := openStore(t, root)
		for _, img := range s.List() {
			if got := fileIn(t, s, img, "home/own"+img.Config.Cmd[0]); len(got) != 100_000 {
				t.Errorf("kill %d: image %v is not whole", kill, img.References)
			}
			if got := fileIn(t, s, img, "shared"); len(got) != 300_000 {
				t.Errorf("kill %d: image %v is not whole", kill, img.References)
			}
		}
		assertNoTempFiles(t, s)
	}
	damaged, _ := os.ReadDir(root + "/images")
	for _, f := range damaged {
		if strings.HasSuffix(f.Name(), ".damaged") {
			t.Errorf("a kill damaged %s", f.Name())
		}
	}
	s := openStore(t, root)
	for _, ref := range refs {
		pull(t, s, ref)
	}
	for _, ref := range refs {
		if err := s.Remove(ref); err != nil {
			t.Error(err)
		}
	}
	assertEmpty(t, s)
}
