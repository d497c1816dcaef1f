package top

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/client"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
)

func TestReadKeys(t *testing.T) {
	for _, tt := range []struct {
		in   string
		last bool
		keys []rune
		rest string
	}{
		{"qP", false, []rune{'q', 'P'}, ""},
		{"\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[1~\x1b[F", false, []rune{keyUp, keyDown, keyPageUp, keyPageDown, keyHome, keyEnd},
			""},
		{"\x1b", false, nil, "\x1b"}, {"\x1b[", false, nil, "\x1b["}, {"\x1b[1;5", false, nil, "\x1b[1;5"},
		{"\x1b", true, []rune{keyEscape}, ""}, {"\x1b[", true, []rune{keyEscape, '['}, ""},
		{"\x1bq", false, []rune{keyEscape, 'q'}, ""},
		{"\x1b[1;5Aq", false, []rune{keyOther, 'q'}, ""},
		{"ä\xc3", false, []rune{'ä'}, "\xc3"}, {"\xc3", true, []rune{utf8.RuneError}, ""},
	} {
		keys, rest := readKeys([]byte(tt.in), tt.last)
		if !slices.Equal(keys, tt.keys) || string(rest) != tt.rest {
			t.Errorf("%q, %t: %v, %q, want %v, %q", tt.in, tt.last, keys, rest, tt.keys, tt.rest)
		}
	}
}

func FuzzTopKeys(f *testing.F) {
	f.Add([]byte("c/web\r\x1b[B\x1b[6~Gp\rR<>>d2.5\r\x1b\x1bh q"), 80, 24)
	f.Add([]byte("/\xff\x1b[3"), 0, 0)
	f.Fuzz(func(t *testing.T, in []byte, width, height int) {
		width, height = min(max(width, 1), 500), min(max(height, 1), 500)
		v := testView()
		keys, _ := readKeys(in, true)
		for _, key := range keys {
			if v.press(key) == quit {
				return
			}
			lines := v.lines(width, height)
			if len(lines) > height {
				t.Fatalf("%d lines on %d", len(lines), height)
			}
			for _, l := range lines {
				if n := utf8.RuneCountInString(l.text); n > width || strings.ContainsAny(l.text, "\x1b\n\r") {
					t.Fatalf("%d characters in %d columns: %q", n, width, l.text)
				}
			}
		}
	})
}

func testView() *topView {
	v := &topView{order: 1, delay: time.Second, now: &sampling{Time: time.Now()}}
	for i := range 40 {
		pod := fmt.Sprintf("shop/web%02d\x1b[2J", i)
		v.now.Pods = append(v.now.Pods, load{Pod: pod, ID: fmt.Sprint("p", i), State: "1/1", CPU: float64(i),
			Memory: float64(40-i) * 1e6, Limit: 1e9, WaitCPU: unknown})
		v.now.Containers = append(v.now.Containers, load{Pod: pod, Container: "main", ID: fmt.Sprint("c", i),
			State: "running", CPU: float64(i)})
	}
	return v
}

func TestTopKeys(t *testing.T) {
	v := testView()
	press := func(in string) {
		keys, _ := readKeys([]byte(in), true)
		for _, key := range keys {
			v.press(key)
		}
	}
	top := func() string { return strings.TrimSuffix(strings.TrimPrefix(v.rows()[0].Pod, "shop/"), "\x1b[2J") }
	for _, tt := range []struct{ keys, first string }{{"", "web39"}, {"M", "web00"}, {"R", "web39"}, {"N", "web00"},
		{">", "web39"}, {"<", "web00"}, {"P", "web39"}} {
		if press(tt.keys); top() != tt.first {
			t.Errorf("after %q the first is %s, want %s", tt.keys, top(), tt.first)
		}
	}
	press("N" + strings.Repeat("j", 30))
	if v.selected != "p30" || !strings.Contains(joined(v.lines(100, 20)), "web30") ||
		strings.Contains(joined(v.lines(100, 20)), "web00") {
		t.Errorf("selected %s\n%s", v.selected, joined(v.lines(100, 20)))
	}
	press("\r") // its containers
	if rows := v.rows(); !v.containers || len(rows) != 1 || rows[0].ID != "c30" {
		t.Errorf("%+v", rows)
	}
	press("\x1b/WEB3\x7f0\r") // back, and a filter with a corrected typo
	if rows := v.rows(); v.containers || v.filter != "WEB0" || len(rows) != 10 {
		t.Errorf("%q: %d rows", v.filter, len(rows))
	}
	press("/zzz\r")
	if text := joined(v.lines(100, 20)); !strings.Contains(text, "(nothing here)") {
		t.Errorf("%s", text)
	}
	press("jkGg\r\x1b")
	if v.filter != "" {
		t.Errorf("filter %q", v.filter)
	}
	press("d2.5\r")
	if v.delay != 2500*time.Millisecond {
		t.Errorf("delay %s", v.delay)
	}
	for _, bad := range []string{"0", "-1", "x", "NaN", "1e9"} {
		if press("d" + bad + "\r"); v.delay != 2500*time.Millisecond || v.notice == "" {
			t.Errorf("%s: delay %s", bad, v.delay)
		}
	}
}

func joined(lines []line) string {
	var out []string
	for _, l := range lines {
		out = append(out, l.text)
	}
	return strings.Join(out, "\n")
}

// On a narrow screen the least important columns are omitted, and no line is cut within a number.
func TestTopColumns(t *testing.T) {
	v := testView()
	for width, want := range map[int]string{200: "CPU% MEMORY MEM% PROC RX/s TX/s DISK CPUw MEMw IOw",
		80: "CPU% MEMORY PROC RX/s TX/s DISK", 60: "CPU% MEMORY RX/s", 20: "CPU% MEMORY"} {
		if got := strings.Join(strings.Fields(v.head(width))[2:], " "); got != want {
			t.Errorf("%d columns: %s, want %s", width, got, want)
		}
		if n := len(v.head(width)); width >= 60 && n > width {
			t.Errorf("%d characters in %d columns", n, width)
		}
	}
}

// oldRuntime is a runtime with the responses of an older one: no statistics of pods, and a CPU
// counter in those of containers.
type oldRuntime struct {
	runtimeapi.RuntimeServiceClient
	reading int64
}

func (r *oldRuntime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest,
	...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: []*runtimeapi.PodSandbox{{Id: "p",
		Metadata: &runtimeapi.PodSandboxMetadata{Namespace: "default", Name: "web"}}}}, nil
}

func (r *oldRuntime) ListContainers(context.Context, *runtimeapi.ListContainersRequest,
	...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: []*runtimeapi.Container{
		{Id: "c", PodSandboxId: "p", Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, State: clitest.Running},
		{Id: "e", PodSandboxId: "p", Metadata: &runtimeapi.ContainerMetadata{Name: "init"}, State: clitest.Exited},
	}}, nil
}

func (r *oldRuntime) PodSandboxStats(context.Context, *runtimeapi.PodSandboxStatsRequest,
	...grpc.CallOption) (*runtimeapi.PodSandboxStatsResponse, error) {
	return nil, status.Error(codes.Unimplemented, "unknown method")
}

func (r *oldRuntime) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest,
	...grpc.CallOption) (*runtimeapi.ListContainerStatsResponse, error) {
	at := 1e18 + r.reading*1e9
	return &runtimeapi.ListContainerStatsResponse{Stats: []*runtimeapi.ContainerStats{{
		Attributes: &runtimeapi.ContainerAttributes{Id: "c"},
		Cpu: &runtimeapi.CpuUsage{Timestamp: int64(at),
			UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: uint64(r.reading) * 25e7}},
		Memory: &runtimeapi.MemoryUsage{WorkingSetBytes: &runtimeapi.UInt64Value{Value: 1 << 20},
			AvailableBytes: &runtimeapi.UInt64Value{Value: 3 << 20}},
	}}}, nil
}

func TestSamplesOfAnotherRuntime(t *testing.T) {
	r := &oldRuntime{}
	s := newSampler(&client.Runtime{RuntimeServiceClient: r})
	// No rate yet, a rate, the same reading again, a counter that was reset.
	for i, want := range []float64{unknown, 25, 25, unknown} {
		r.reading = []int64{4, 5, 5, 5}[i]
		if i == 3 {
			s.counters["c cpu"] = growing{at: 1, sum: 1 << 62}
		}
		got, err := s.sample(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Pods) != 1 || len(got.Containers) != 2 || got.Running != 1 || got.Pods[0].CPU != want ||
			got.Pods[0].Memory != 1<<20 || got.Pods[0].State != "1/2" {
			t.Errorf("sample %d: %+v", i, got)
		}
		if c := got.Containers[slices.IndexFunc(got.Containers, func(l load) bool { return l.ID == "c" })]; c.CPU != want ||
			ofLimit(c) != 25 || c.Receive != unknown {
			t.Errorf("sample %d: %+v", i, c)
		}
	}
}

// A panic in the loop or in another goroutine restores the terminal.
func TestScreenIsGivenBackAfterAPanic(t *testing.T) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("SKIP: no terminals here: %v", err)
	}
	ours := os.NewFile(uintptr(fd), "ptmx")
	defer ours.Close()
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	terminal := os.NewFile(peer, "pts")
	defer terminal.Close()
	settings := func() unix.Termios {
		set, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return *set
	}
	before := settings()
	func() {
		defer func() { _ = recover() }()
		s, err := openScreen(terminal, terminal)
		defer s.close()
		if err != nil {
			t.Fatal(err)
		}
		if settings() == before {
			t.Error("the terminal was not set up")
		}
		panic("a fault of ours")
	}()
	if settings() != before {
		t.Error("the terminal is not as it was")
	}
	ours.SetReadDeadline(time.Now().Add(30 * time.Second))
	var shown strings.Builder
	for buf := make([]byte, 4096); !strings.HasSuffix(shown.String(), leaveScreen); { // output arrives in pieces
		n, err := ours.Read(buf)
		if err != nil {
			t.Errorf("%q, %v", shown.String(), err)
			break
		}
		shown.Write(buf[:n])
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	guarded(cancel, func() { panic("beside it") })
	<-ctx.Done()
	var panicked panicError
	if !errors.As(context.Cause(ctx), &panicked) || !strings.Contains(panicked.text, "beside it") {
		t.Errorf("%v", context.Cause(ctx))
	}
}
