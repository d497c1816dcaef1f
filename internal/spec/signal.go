package spec

import (
	"strconv"
	"strings"
	"syscall"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The range of real-time signals in C programs: glibc and musl reserve 32 and 33 (musl 34 too).
const (
	rtMin = 34
	rtMax = 64
)

// StopSignal returns the signal that stops a container, as the number on this machine and as the
// CRI name: that of the container's configuration, else the image's, else SIGTERM. If several CRI
// names have the same number, the first is returned. An invalid signal in the image is ignored, as
// in other runtimes.
func StopSignal(ctr *runtime.ContainerConfig, image imagespec.ImageConfig) (syscall.Signal, runtime.Signal, error) {
	if s := ctr.GetStopSignal(); s != runtime.Signal_SIGNAL_RUNTIME_DEFAULT {
		n, ok := signalNumber(strings.TrimPrefix(s.String(), "SIGNAL_"))
		if !ok {
			return 0, 0, invalid("stop_signal", "unknown signal %d", s)
		}
		return n, s, nil
	}
	n, ok := imageSignal(image.StopSignal)
	if !ok {
		return syscall.SIGTERM, runtime.Signal_SIGNAL_SIGTERM, nil
	}
	return n, SignalName(n), nil
}

// imageSignal parses a signal in the syntax of a Dockerfile's STOPSIGNAL: "SIGQUIT", "QUIT",
// "RTMIN+3" or "3".
func imageSignal(s string) (syscall.Signal, bool) {
	if n, err := strconv.Atoi(s); err == nil {
		return syscall.Signal(n), n > 0 && n <= rtMax
	}
	s = "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	s = strings.Replace(strings.Replace(s, "+", "PLUS", 1), "-", "MINUS", 1)
	return signalNumber(s)
}

// signalNumber parses a signal in the syntax of the CRI, without the prefix SIGNAL_: "SIGTERM",
// "SIGRTMINPLUS3".
func signalNumber(s string) (syscall.Signal, bool) {
	if offset, ok := strings.CutPrefix(s, "SIGRTMIN"); ok {
		return realTime(rtMin, strings.TrimPrefix(offset, "PLUS"), 1)
	}
	if offset, ok := strings.CutPrefix(s, "SIGRTMAX"); ok {
		return realTime(rtMax, strings.TrimPrefix(offset, "MINUS"), -1)
	}
	switch s { // aliases that package unix does not know
	case "SIGCLD":
		return unix.SIGCHLD, true
	case "SIGIOT":
		return unix.SIGABRT, true
	case "SIGPOLL":
		return unix.SIGIO, true
	}
	n := unix.SignalNum(s)
	return n, n != 0
}

func realTime(base int, offset string, sign int) (syscall.Signal, bool) {
	n := 0
	if offset != "" {
		var err error
		if n, err = strconv.Atoi(offset); err != nil || n < 0 {
			return 0, false
		}
	}
	n = base + sign*n
	return syscall.Signal(n), n >= rtMin && n <= rtMax
}

// SignalName returns the CRI name of a signal number, or SIGNAL_RUNTIME_DEFAULT if it has none.
func SignalName(n syscall.Signal) runtime.Signal {
	for s := runtime.Signal_SIGNAL_SIGABRT; s <= runtime.Signal_SIGNAL_SIGRTMAX; s++ {
		if m, ok := signalNumber(strings.TrimPrefix(s.String(), "SIGNAL_")); ok && m == n {
			return s
		}
	}
	return runtime.Signal_SIGNAL_RUNTIME_DEFAULT
}
