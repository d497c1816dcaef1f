package main

import (
	"bufio"
	"strings"
	"testing"
)

const text = `Pull images.

  as they are

Usage:
  kuri pull IMAGE... [flags]

Examples:
  kuri pull nginx:1
  .hidden \ path

Available Commands:
  help        Help about a command
  ls-all      List

Flags:
  -a, --all             all of them, and
                        more
      --creds string    USER:PASSWORD

Use "kuri [command] --help" for more information about a command.
`

func TestRead(t *testing.T) {
	h, err := read(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(h.verbs(), " "); got != "ls-all" {
		t.Errorf("the verbs are %q", got)
	}
	if got := strings.Join(h[""], "|"); got != "Pull images.||  as they are" {
		t.Errorf("the description is %q", got)
	}
	if _, err := read("kuri: unknown command\n"); err == nil {
		t.Error("an error message passes for a help")
	}
}

func TestRoff(t *testing.T) {
	h, err := read(text)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	p := page{out: bufio.NewWriter(&b)}
	p.text(h[""])
	p.flags(h["Flags"])
	p.literal(h["Examples"])
	p.literal([]string{".hidden"})
	p.out.Flush()
	want := `Pull images.
.PP
.nf
  as they are
.fi
.TP
.B \-a, \-\-all
all of them, and
more
.TP
.B \-\-creds string
USER:PASSWORD
.PP
.nf
  kuri pull nginx:1
  .hidden \e path
.fi
.PP
.nf
\&.hidden
.fi
`
	if got := b.String(); got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// The titles of groups of verbs take the place of one heading.
func TestGroups(t *testing.T) {
	h, err := read(`kuri talks to a runtime. Two words:

Usage:
  kuri [command]

Running:
  run         Run pods

Pods and containers:
  ps          List containers

Additional Commands:
  completion  For shells

Flags:
  -h, --help   help
`)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(h.verbs(), " "); got != "run ps completion" {
		t.Errorf("the verbs are %q", got)
	}
	if got := len(h["Flags"]); got != 1 {
		t.Errorf("%d flags", got)
	}
}
