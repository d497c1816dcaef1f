package challenge

import (
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestChallenges(t *testing.T) {
	type params = map[string]string
	for in, want := range map[string][]Challenge{
		``:                  nil,
		`Basic`:             {{"basic", params{}}},
		`BASIC realm="a b"`: {{"basic", params{"realm": "a b"}}},
		`Bearer realm="https://auth.example/token?a=b,c",service="svc",scope="repository:a/b:pull,push repository:c:pull"`: {
			{"bearer", params{"realm": "https://auth.example/token?a=b,c", "service": "svc",
				"scope": "repository:a/b:pull,push repository:c:pull"}}},
		`Bearer Realm = "r" , error="x \"y\""`: {{"bearer",
			params{"realm": "r", "error": `x "y"`}}},
		`Basic realm="x", Bearer realm=https://a.example/t,service=s`: {{"basic", params{"realm": "x"}},
			{"bearer", params{"realm": "https://a.example/t", "service": "s"}}},
		`Negotiate, Basic realm=x`: {{"negotiate", params{}},
			{"basic", params{"realm": "x"}}},
		`Bearer realm="not closed`: {{"bearer", params{}}},
		`Bearer realm="x\`:         {{"bearer", params{}}},
		`=,;"`:                     nil,
	} {
		if got := parse(in); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", in, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`Basic realm="x", Bearer realm=https://a.example/t,service=s`)
	f.Fuzz(func(t *testing.T, s string) { parse(s) })
}

func TestRealm(t *testing.T) {
	base := &url.URL{Scheme: "https", Host: "registry.example:5000", Path: "/v2/app/manifests/1", RawQuery: "ns=x"}
	for realm, want := range map[string]string{
		"https://auth.example/token?a=b":    "https://auth.example/token?a=b",
		" http://auth.example ":             "http://auth.example",
		"HTTPS://auth.example/t":            "https://auth.example/t",
		"https://u:secret@auth.example/t#x": "https://auth.example/t",
		"/token?a=b":                        "https://registry.example:5000/token?a=b",
		"//auth.example/t":                  "https://auth.example/t",
		"///token":                          "https://registry.example:5000///token",
		"/../../etc":                        "https://registry.example:5000/etc",
		"":                                  "", "token": "", "auth.example/token": "", "file:///etc/passwd": "",
		"https://": "", "https:///token": "", "http://[::1": "", "ftp://auth.example": "",
	} {
		got, err := Realm(base, realm)
		if err != nil {
			if want != "" || strings.Contains(err.Error(), "[::1") {
				t.Errorf("%q: %v", realm, err)
			}
			continue
		}
		if got.String() != want {
			t.Errorf("%q: %s, want %q", realm, got, want)
		}
	}
}

func TestTokenLifetime(t *testing.T) {
	for said, want := range map[string]time.Duration{
		`60`: time.Minute, `"60"`: time.Minute, `0.5`: time.Second / 2, `1e3`: 1000 * time.Second,
		`0`: 0, `-1`: 0, `""`: 0, `"soon"`: 0, `null`: 0, `{}`: 0, `[5]`: 0, `true`: 0, `1e300`: 0,
		`9223372036854775807`: 0, `"NaN"`: 0, `"Inf"`: 0,
	} {
		if got, err := ParseToken([]byte(`{"token":"x","expires_in":` + said + `}`)); got != (Token{"x", want}) ||
			err != nil {
			t.Errorf("%s: %+v, %v", said, got, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add([]byte(`{"token":"x","expires_in":60}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if got, err := ParseToken(body); err == nil &&
			(got.Text == "" || got.Life < 0 || strings.ContainsAny(got.Text, "\r\n")) {
			t.Errorf("%q: %+v", body, got)
		}
	})
}
