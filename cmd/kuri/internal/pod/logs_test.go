package pod

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/cli"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/clitest"
	"github.com/kuri-cri/kuri/cmd/kuri/internal/crilog"
)

func TestLogged(t *testing.T) {
	for _, tt := range []struct {
		names    string
		previous bool
		want     string // id:prefix
		missing  bool
	}{
		{"a", false, "a2:", false},
		{"a/c b/c", false, "a2:a/c bc:b/c", false},
		{"b", false, "bc:c bd:d", false},
		{"b b/d", false, "bc:c bd:d", false},
		{"a", true, "a1:", false},
		{"a1", true, "a0:", false},
		{"b", true, "bd-old:", false},
		{"b/c", true, "", true},
		{"none", false, "", true},
	} {
		v := clitest.LoggedInventory()
		list, err := logged(v, strings.Fields(tt.names), tt.previous)
		if (err != nil) != tt.missing {
			t.Errorf("%s: %v", tt.names, err)
			continue
		}
		var got []string
		for _, s := range sources(v, list, nil) {
			got = append(got, s.ID+":"+s.Prefix)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s, previous %t: %q, want %q", tt.names, tt.previous, got, tt.want)
		}
	}
}

// TestOthersWordsAreSafe: names and a runtime's errors must not pass control sequences to the terminal.
func TestOthersWordsAreSafe(t *testing.T) {
	var b bytes.Buffer
	(&cli.CLI{Err: &b}).Report(fmt.Errorf("stop x: %w",
		status.Error(codes.Unknown, "why\x1b]0;title\x07\u009b2J\nand why")))
	if got, want := b.String(), "kuri: stop x: why?]0;title??2J\nkuri: and why\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := string((&LogPrinter{}).head(crilog.Entry{}, "pod/\x1b[31mred")); got != "[pod/?[31mred] " {
		t.Errorf("%q", got)
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Time{
		"": {}, "10m": now.Add(-10 * time.Minute), "2026-01-01T00:00:00Z": time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		if got, err := parseSince(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %s %v", in, got, err)
		}
	}
	for _, in := range []string{"-5m", "yesterday", "2026-01-01"} {
		if _, err := parseSince(in, now); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

func TestLogPrinter(t *testing.T) {
	when := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	entries := []crilog.Entry{
		{Time: when, Stream: crilog.Stdout, Partial: true, Text: []byte("he")},
		{Time: when, Stream: crilog.Stderr, Text: []byte("oops")},
		{Time: when, Stream: crilog.Stdout, Text: []byte("llo")},
		{Time: when, Stream: crilog.Stdout, Text: nil},
		{Time: when, Stream: crilog.Stdout, Partial: true, Text: []byte("cut")},
	}
	for _, tt := range []struct {
		prefix    string
		stamps    bool
		out, errs string
	}{
		{"", false, "hello\n\ncut", "oops\n"},
		{"", true, "2026-01-02T03:04:05.000000006Z hello\n2026-01-02T03:04:05.000000006Z \n2026-01-02T03:04:05.000000006Z cut", "2026-01-02T03:04:05.000000006Z oops\n"},
		{"a", false, "[a] hello\n[a] \n[a] cut\n", "[a] oops\n"},
	} {
		var out, errs bytes.Buffer
		s := &LogSource{Prefix: tt.prefix, Printer: &LogPrinter{Out: &out, Err: &errs, stamps: tt.stamps}}
		for _, e := range entries {
			if err := s.entry(e); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.flush(); err != nil {
			t.Fatal(err)
		}
		if out.String() != tt.out || errs.String() != tt.errs {
			t.Errorf("%+v: %q and %q", tt, out.String(), errs.String())
		}
	}
}

func TestLoggedOfAPod(t *testing.T) {
	v := clitest.Stock()
	for name, want := range map[string]string{"web": "111a 111b", "web/log": "111b", "default/db": "222b",
		"again": "444a"} {
		list, err := logged(v, []string{name}, false)
		if got := strings.Join(cli.Texts(list, (*runtimeapi.Container).GetId), " "); err != nil || got != want {
			t.Errorf("%s: %q %v, want %q", name, got, err, want)
		}
	}
	var missing cli.NotFoundError
	if _, err := logged(v, []string{"ccc1"}, false); !errors.As(err, &missing) {
		t.Errorf("a pod without containers: %v", err)
	}
}
