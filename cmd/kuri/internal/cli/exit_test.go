package cli

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestExitCodesOfErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
		says string
	}{
		{nil, 0, ""},
		{ExitCode(42), 42, ""},
		{fmt.Errorf("wrapped: %w", ExitCode(42)), 42, ""},
		{errors.New("why"), 1, "kuri: why\n"},
		{errors.New("one\ntwo"), 1, "kuri: one\nkuri: two\n"},
		{Usagef("why"), 2, "kuri: why\nkuri: see kuri --help\n"},
		{NotFound("there is no pod %q", "x"), 3, "kuri: there is no pod \"x\"\n"},
		{errors.Join(NotFound("a"), NotFound("b")), 3, "kuri: a\nkuri: b\n"},
		{fmt.Errorf("stop x: %w", status.Error(codes.NotFound, "gone")), 3, "kuri: stop x: gone\n"},
		{fmt.Errorf("pull x: %w", status.Error(codes.Unavailable, "registry.example does not answer")), 1,
			"kuri: pull x: registry.example does not answer\n"},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), 4,
			"kuri: the connection broke: the runtime has stopped or was restarted\n"},
		{fmt.Errorf("list: %w", status.Error(codes.Unavailable, "connection error: desc = x")), 4,
			"kuri: list: the connection broke: the runtime has stopped or was restarted\n"},
		{status.Error(codes.DeadlineExceeded, "sleep was killed"), 1, "kuri: sleep was killed\n"},
		{fmt.Errorf("list: %w", status.Error(codes.DeadlineExceeded, "context deadline exceeded")), 1,
			"kuri: list: the runtime did not answer in time (see --timeout)\n"},
		{errors.Join(fmt.Errorf("stop x: %w", status.Error(codes.Unknown, "why")),
			fmt.Errorf("stop y: %w", status.Error(codes.Internal, "else"))), 1, "kuri: stop x: why\nkuri: stop y: else\n"},
	} {
		c, _, errs := newCLI(nil)
		if code := c.Exit(context.Background(), tt.err); code != tt.code || errs.String() != tt.says {
			t.Errorf("%v: %d, %q", tt.err, code, errs)
		}
	}
}

// Network errors have the address and the reason, and no phrases of Go's packages.
func TestPlainNetwork(t *testing.T) {
	for in, want := range map[string]string{
		`ask a:1 whether: Get "https://a:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused`:                                                  "ask a:1 whether: 127.0.0.1:1: connection refused",
		"host r.io did not answer: dial tcp: lookup r.io on 10.0.0.1:53: no such host":                                                               "host r.io did not answer: there is no host r.io",
		"RegistryUnavailable: host r.io did not answer: dial tcp: lookup r.io on 10.0.0.1:53: dial udp 10.0.0.1:53: connect: network is unreachable": "host r.io did not answer: look up the host r.io on 10.0.0.1:53: network is unreachable",
		"host r.io did not answer: dial tcp: lookup r.io on 10.0.0.1:53: read udp 10.0.0.2:40->10.0.0.1:53: i/o timeout":                             "host r.io did not answer: look up the host r.io on 10.0.0.1:53: i/o timeout",
		"dial tcp [::1]:80: connect: connection refused":                                                                                             "[::1]:80: connection refused",
		"create container web: no such image":                                                                                                        "create container web: no such image",
	} {
		if got := plainNetwork(in); got != want {
			t.Errorf("%q\nbecame %q\nwant   %q", in, got, want)
		}
	}
}

// Kuri answers Unimplemented to a request that it cannot serve, such as the load of an archive with
// an encrypted layer. That does not make it another runtime.
func TestNotServed(t *testing.T) {
	for text, want := range map[string]bool{
		"unknown service kuri.v1.Images":                 true,
		"unknown method Load for service kuri.v1.Images": true,
		"method Load not implemented":                    true,
		"load images: the layer is encrypted":            false,
	} {
		if err := status.Error(codes.Unimplemented, text); NotServed(fmt.Errorf("load: %w", err)) != want {
			t.Errorf("%q: %t", text, !want)
		}
	}
	if !NotServed(status.Error(codes.Unimplemented, "")) || NotServed(status.Error(codes.NotFound, "unknown method x")) ||
		NotServed(nil) {
		t.Error("without a text, another code, or no error")
	}
}
