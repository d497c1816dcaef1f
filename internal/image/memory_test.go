package image

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// largeMemory sets the size in MiB of each of the ten layers in the memory test: 205 for 2 GiB in
// total. That takes minutes.
const largeMemory = "KURI_TEST_LAYER_MIB"

// The memory taken by a pull does not depend on the image's size. The child pulls a small image,
// prints "idle", and pulls the large one when it reads a line.
func TestMemoryOfAPullIsBounded(t *testing.T) {
	needRoot(t)
	if raceDetector {
		t.Skip("the race detector takes memory of its own")
	}
	const mayTake = 56 << 10 // KiB above idle; 64 MiB are documented
	size := 14
	if large := os.Getenv(largeMemory); large != "" {
		var err error
		if size, err = strconv.Atoi(large); err != nil {
			t.Fatal(err)
		}
	}
	for name, packed := range map[string]func(t *testing.T, body []byte) v1.Layer{
		"gzip": func(t *testing.T, body []byte) v1.Layer { return layerOfTar(t, body) },
		"zstd": zstdLayer,
	} {
		t.Run(name, func(t *testing.T) {
			h := newHub(t)
			var layers []v1.Layer
			for l := range 10 {
				layers = append(layers, packed(t, tarOf(t, file{fmt.Sprint("f", l), halfRandom(size<<20, uint64(l))})))
			}
			small, large := h.push("small:1", imageOf(t, "small", layerOf(t, file{"a", "a"}))),
				h.push("large:1", imageOf(t, "large", layers...))
			child := exec.Command("/proc/self/exe")
			child.Env = append(os.Environ(), childRoot+"="+t.TempDir(), childRefs+"="+small+" "+large, childOnce+"=yes")
			said := new(bytes.Buffer)
			child.Stderr = said
			in, err := child.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			defer child.Process.Kill()
			lines := bufio.NewScanner(out)
			wait := func(line string) {
				t.Helper()
				if !lines.Scan() || lines.Text() != line {
					t.Fatalf("the child said %q, %s", lines.Text(), said)
				}
			}
			wait("idle")
			idle := status(t, child.Process.Pid, "VmRSS")
			fmt.Fprintln(in)
			wait("pulled")
			most := status(t, child.Process.Pid, "VmHWM")
			in.Close()
			child.Wait()
			t.Logf("idle %d KiB, at the most %d KiB", idle, most)
			if most-idle > mayTake {
				t.Errorf("the pull took %d KiB over the idle %d", most-idle, idle)
			}
		})
	}
}

// status returns a field of /proc/<pid>/status in KiB.
func status(t *testing.T, pid int, field string) int {
	t.Helper()
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %s", field)
	return 0
}

func zstdLayer(t *testing.T, body []byte) v1.Layer {
	t.Helper()
	var packed bytes.Buffer
	w, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return layerOfTar(t, packed.Bytes(), tarball.WithMediaType(types.OCILayerZStd))
}
