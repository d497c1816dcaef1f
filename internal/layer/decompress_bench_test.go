package layer

import (
	"bytes"
	stdgzip "compress/gzip"
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// BenchmarkDecompress decompresses this test binary with Kuri's decoders, with the standard
// library, and with the programs that containerd uses if they are installed. CPU time includes that
// of child processes.
func BenchmarkDecompress(b *testing.B) {
	plain, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	gzipped, zstded := pack(b, plain, gzipTo), pack(b, plain, zstdTo)
	for _, way := range []struct {
		name   string
		packed []byte
		drain  func(io.Reader) (int64, error)
	}{
		{"gzip/kuri", gzipped, drainOurs},
		{"gzip/standard", gzipped, func(r io.Reader) (int64, error) {
			z, err := stdgzip.NewReader(r)
			if err != nil {
				return 0, err
			}
			return io.Copy(io.Discard, z)
		}},
		{"gzip/igzip", gzipped, drainProgram("igzip", "-d", "-c")},
		{"gzip/unpigz", gzipped, drainProgram("unpigz", "-d", "-c")},
		{"zstd/kuri", zstded, drainOurs},
		{"zstd/zstd", zstded, drainProgram("zstd", "-d", "-c")},
	} {
		b.Run(way.name, func(b *testing.B) {
			if way.drain == nil {
				b.Skip("the program is not installed")
			}
			b.SetBytes(int64(len(plain)))
			before := cpuTime(b)
			for b.Loop() {
				if n, err := way.drain(bytes.NewReader(way.packed)); err != nil || n != int64(len(plain)) {
					b.Fatalf("%d of %d bytes, %v", n, len(plain), err)
				}
			}
			took := cpuTime(b) - before
			b.ReportMetric(float64(len(plain))*float64(b.N)/1e6/took.Seconds(), "MB/cpu-s")
		})
	}
}

func drainOurs(r io.Reader) (int64, error) {
	plain, err := Decompress(r)
	if err != nil {
		return 0, err
	}
	defer plain.Close()
	return io.Copy(io.Discard, plain)
}

// drainProgram returns a function that decompresses with the program, or nil if it is not
// installed.
func drainProgram(name string, args ...string) func(io.Reader) (int64, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil
	}
	return func(r io.Reader) (int64, error) {
		cmd := exec.Command(path, args...)
		cmd.Stdin = r
		out, err := cmd.StdoutPipe()
		if err != nil {
			return 0, err
		}
		if err := cmd.Start(); err != nil {
			return 0, err
		}
		n, err := io.Copy(io.Discard, out)
		if err != nil {
			return n, err
		}
		return n, cmd.Wait()
	}
}

func gzipTo(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }
func zstdTo(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }

type packer func(io.Writer) (io.WriteCloser, error)

func pack(b *testing.B, plain []byte, to packer) []byte {
	b.Helper()
	var packed bytes.Buffer
	w, err := to(&packed)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		b.Fatal(err)
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return packed.Bytes()
}

// cpuTime returns the CPU time of this process and its finished children.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var sum int64
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += u.Utime.Nano() + u.Stime.Nano()
	}
	return time.Duration(sum)
}
