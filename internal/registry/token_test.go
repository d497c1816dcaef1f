package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
)

// guard is a registry that requires tokens, with its token server at /token.
type guard struct {
	addr string

	mu      sync.Mutex
	valid   string // the token that is accepted now
	issued  int
	expires any // expires_in of further tokens
	// how it refuses a token; nil: 401 with a challenge
	refuse func(w http.ResponseWriter, challenge string)
	tokens func(w http.ResponseWriter, r *http.Request) (done bool) // overrides its token server
}

func newGuard(t *testing.T, c *content) *guard {
	g := &guard{}
	g.addr = serve(t, func(w http.ResponseWriter, r *http.Request) {
		g.mu.Lock()
		valid, refuse, tokens := g.valid, g.refuse, g.tokens
		g.mu.Unlock()
		if r.URL.Path == "/token" {
			if tokens != nil && tokens(w, r) {
				return
			}
			g.issue(w, r)
			return
		}
		if got := r.Header.Get("Authorization"); got == "" || got != "Bearer "+valid {
			challenge := fmt.Sprintf(`Bearer realm="http://%s/token",service="svc",scope="repository:library/app:pull"`,
				g.addr)
			if refuse != nil && got != "" {
				refuse(w, challenge)
				return
			}
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		c.ServeHTTP(w, r)
	})
	return g
}

func (g *guard) issue(w http.ResponseWriter, r *http.Request) {
	if u, p, ok := r.BasicAuth(); !ok || u != "u" || p != "password" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.issued++
	g.valid = fmt.Sprintf("token-number-%d", g.issued)
	answer := map[string]any{"access_token": g.valid}
	if g.expires != nil {
		answer["expires_in"] = g.expires
	}
	json.NewEncoder(w).Encode(answer)
}

// expire invalidates the current token.
func (g *guard) expire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.valid = "none any more"
}

func (g *guard) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

// A token may expire during a pull, and registries report that in different ways.
func TestTokenExpiresDuringAPull(t *testing.T) {
	c := newContent(t)
	for name, refuse := range map[string]func(w http.ResponseWriter, challenge string){
		"401 with an error": func(w http.ResponseWriter, challenge string) {
			w.Header().Set("WWW-Authenticate", challenge+`,error="invalid_token"`)
			w.WriteHeader(http.StatusUnauthorized)
		},
		"401 without":             nil,
		"401 without a challenge": func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusUnauthorized) },
		"403":                     func(w http.ResponseWriter, _ string) { w.WriteHeader(http.StatusForbidden) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGuard(t, c)
			g.refuse = refuse
			r := open(t, nil, g.addr+"/library/app:1", Auth{Username: "u", Password: "password"})
			if _, err := r.Manifest(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				g.expire()
				var wg sync.WaitGroup
				for range 4 {
					wg.Go(func() {
						if err := readBlob(t.Context(), r, c); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			}
			if g.issued != 4 {
				t.Errorf("%d tokens were fetched, want 4", g.issued)
			}
		})
	}
}

// A token may expire between two ranges of a blob.
func TestTokenExpiresBetweenRanges(t *testing.T) {
	c := newContent(t)
	body := bytesOf(t, c)
	var g *guard
	var cuts atomic.Int32
	g = newGuard(t, &content{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if cuts.Add(1) <= 2 {
			g.expire()
			w.Header().Set("Content-Length", fmt.Sprint(c.size))
			w.Write(body[:len(body)/2])
			return
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(body)))
	})})
	r := open(t, nil, g.addr+"/library/app:1", Auth{Username: "u", Password: "password"})
	if err := readBlob(t.Context(), r, c); err != nil {
		t.Error(err)
	}
}

// An expired token is not used, and its lifetime is given in different formats.
func TestTokenLifetime(t *testing.T) {
	c := newContent(t)
	for _, expires := range []any{1, "1", 1.0, 0, -1, "", "soon", nil, 1e300} {
		t.Run(fmt.Sprint(expires), func(t *testing.T) {
			t.Parallel()
			g := newGuard(t, c)
			g.expires = expires
			var refused atomic.Bool
			r := open(t, nil, g.addr+"/library/app:1", Auth{Username: "u", Password: "password"})
			if err := readBlob(t.Context(), r, c); err != nil {
				t.Fatal(err)
			}
			time.Sleep(1100 * time.Millisecond)
			g.set(func() {
				g.refuse = func(w http.ResponseWriter, _ string) {
					refused.Store(true)
					w.WriteHeader(http.StatusUnauthorized)
				}
			})
			if err := readBlob(t.Context(), r, c); err != nil {
				t.Error(err)
			}
			over := expires == 1 || expires == "1" || expires == 1.0
			// A busy machine may take longer than a second between two requests.
			if over != (g.issued > 1) || refused.Load() {
				t.Errorf("%d tokens; one was refused: %v", g.issued, refused.Load())
			}
		})
	}
}

// A refusal of a token that was fetched for the request is final.
func TestRefusalOfAFreshTokenIsFinal(t *testing.T) {
	c := newContent(t)
	for _, status := range []int{401, 403} {
		g := newGuard(t, c)
		g.refuse = func(w http.ResponseWriter, challenge string) {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(status)
		}
		g.tokens = func(w http.ResponseWriter, r *http.Request) bool {
			g.issue(w, r)
			g.expire()
			return true
		}
		_, err := open(t, nil, g.addr+"/library/app:1", Auth{Username: "u", Password: "password"}).Manifest(t.Context())
		if kind := fault.Of(err); kind != fault.Unauthenticated && kind != fault.PermissionDenied || g.issued > 2 {
			t.Errorf("%d: %d tokens, %v", status, g.issued, err)
		}
	}
}

// A token server may fail temporarily, and may support only one request method.
func TestOddTokenServer(t *testing.T) {
	c := newContent(t)
	elsewhere := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); ok || r.Method != http.MethodGet || r.ContentLength > 0 {
			t.Errorf("%s with secrets at another origin", r.Method)
		}
		io.WriteString(w, `{"token":"of another server"}`)
	})
	var n atomic.Int32
	for name, row := range map[string]struct {
		tokens func(w http.ResponseWriter, r *http.Request) bool
		auth   Auth
		kind   fault.Kind
		says   string
	}{
		"503 once": {tokens: func(w http.ResponseWriter, r *http.Request) bool {
			if n.Add(1) > 1 {
				return false
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}},
		"503 for ever": {tokens: func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(503); return true },
			kind: fault.Unavailable, says: "503"},
		"429 for an hour": {tokens: func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
			return true
		}, kind: fault.Unavailable, says: "429"},
		"no token": {tokens: func(w http.ResponseWriter,
			r *http.Request) bool {
			io.WriteString(w, `{}`)
			return true
		}, kind: fault.Unavailable,
			says: "without a token"},
		"a web page": {tokens: func(w http.ResponseWriter,
			r *http.Request) bool {
			io.WriteString(w, `<html>`)
			return true
		}, kind: fault.Unavailable,
			says: "without a token"},
		"its words": {tokens: func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, `{"errors":[{"code":"DENIED","message":"the password password is of no use"}]}`)
			return true
		}, kind: fault.PermissionDenied, says: "DENIED: the … … is of no use"},
		"redirects to another port": {tokens: func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "http://"+elsewhere+"/token?secret=abcdef", http.StatusTemporaryRedirect)
			return true
		}, kind: fault.Unauthenticated, says: "not sent there"},
		"redirects an identity token": {auth: Auth{IdentityToken: "refresh"},
			tokens: func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, "http://"+elsewhere+"/token", http.StatusPermanentRedirect)
				return true
			}, kind: fault.Unauthenticated, says: "not sent there"},
		"redirects to itself": {tokens: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("again") != "" {
				return false
			}
			http.Redirect(w, r, "/token?again=1", http.StatusFound)
			return true
		}},
		"knows POST alone": {tokens: func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPost {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return true
			}
			r.SetBasicAuth(r.FormValue("username"), r.FormValue("password"))
			return false
		}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuard(t, c)
			g.tokens = row.tokens
			auth := row.auth
			if auth == (Auth{}) {
				auth = Auth{Username: "u", Password: "password"}
			}
			_, err := open(t, nil, g.addr+"/library/app:1", auth).Manifest(t.Context())
			if fault.Of(err) != row.kind || row.says != "" && !strings.Contains(fmt.Sprint(err), row.says) ||
				strings.Contains(fmt.Sprint(err), "abcdef") {
				t.Errorf("kind %q: %v", fault.Of(err), err)
			}
		})
	}
}

// A caller that is cancelled while another one fetches the token returns at once. If the caller
// that fetches the token is cancelled, the others are not affected.
func TestCancellationWhileATokenIsFetched(t *testing.T) {
	c := newContent(t)
	g := newGuard(t, c)
	asked, gate := make(chan struct{}, 10), make(chan struct{})
	g.tokens = func(_ http.ResponseWriter, r *http.Request) bool {
		asked <- struct{}{}
		select {
		case <-gate:
		case <-r.Context().Done():
		}
		return false
	}
	r := open(t, nil, g.addr+"/library/app:1", Auth{Username: "u", Password: "password"})
	first, leave := context.WithCancel(t.Context())
	results := make(chan error, 2)
	go func() { results <- readBlob(first, r, c) }()
	<-asked
	go func() { results <- readBlob(t.Context(), r, c) }()
	time.Sleep(50 * time.Millisecond)
	leave()
	if err := <-results; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up: %v", err)
	}
	close(gate)
	if err := <-results; err != nil {
		t.Errorf("who waited: %v", err)
	}
}

// Tokens take precedence over passwords, and a challenge may be the second one in a header.
func TestSeveralChallenges(t *testing.T) {
	c := newContent(t)
	g := newGuard(t, c)
	addr := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, _, ok := r.BasicAuth(); ok {
			t.Error("the password was sent where a token was to be had")
		}
		if r.Header.Get("Authorization") != "" {
			c.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Basic realm="x", Bearer realm="http://%s/token"`, g.addr))
		w.WriteHeader(http.StatusUnauthorized)
	})
	if err := readBlob(t.Context(), open(t, nil, addr+"/library/app:1", Auth{Username: "u", Password: "password"}),
		c); err != nil {
		t.Error(err)
	}
}

func TestAuthSpellings(t *testing.T) {
	type want struct{ user, secret, bearer string }
	for name, row := range map[string]struct {
		auth Auth
		want want
		says string // part of the error
	}{
		"none":                  {},
		"password":              {auth: Auth{Username: "u", Password: "p:q"}, want: want{"u", "p:q", ""}},
		"no password":           {auth: Auth{Username: "u"}, want: want{"u", "", ""}},
		"colon in the password": {auth: Auth{Auth: "dTpwOnE="}, want: want{"u", "p:q", ""}},
		"without padding":       {auth: Auth{Auth: "dTpwOnE"}, want: want{"u", "p:q", ""}},
		"with a line break":     {auth: Auth{Auth: "dTpw\nOnE=\n"}, want: want{"u", "p:q", ""}},
		"other alphabet":        {auth: Auth{Auth: "dTo_Pz4-"}, want: want{"u", "??>>", ""}},
		"NUL behind it":         {auth: Auth{Auth: "dTpwAAA="}, want: want{"u", "p", ""}},
		"empty password":        {auth: Auth{Auth: "dTo="}, want: want{"u", "", ""}},
		"username beside auth":  {auth: Auth{Username: "u", Auth: "dTpwOnE="}, want: want{"u", "p:q", ""}},
		"password beside auth": {auth: Auth{Username: "x", Password: "y", Auth: "dTpwOnE="},
			want: want{"x", "y", ""}},
		"identity token beside user": {auth: Auth{Username: "00000000-0000-0000-0000-000000000000", Auth: "eDo=",
			IdentityToken: "refresh"}, want: want{"", "refresh", ""}},
		"registry token first": {auth: Auth{Username: "u", Password: "p", IdentityToken: "refresh",
			RegistryToken: "access"}, want: want{"", "", "access"}},
		"no user":        {auth: Auth{Auth: "OnNlY3JldA=="}, says: "no username"},
		"password alone": {auth: Auth{Password: "secret"}, says: "no username"},
		"not base64":     {auth: Auth{Auth: "secret!"}, says: "base64"},
		"no colon":       {auth: Auth{Auth: "c2VjcmV0"}, says: "colon"},
		"server is a secret URL": {auth: Auth{Username: "u", Password: "p", ServerAddress: "https://u:secret@ :x"},
			says: "neither a host nor a URL"},
	} {
		c, err := row.auth.decode()
		if err != nil {
			if row.says == "" || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "secret") ||
				fault.Of(err) != fault.Invalid {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if got := (want{c.user, c.secret, c.bearer}); got != row.want || row.says != "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// Odd answers of a token server, with and without a usable token.
func TestOddTokens(t *testing.T) {
	c := newContent(t)
	for name, row := range map[string]struct {
		status int // 0: 200
		answer string
		kind   fault.Kind // "": the token is good
		says   string
	}{
		"created":                     {status: 201, answer: `{"token":"good"}`},
		"a byte order mark":           {answer: "\xef\xbb\xbf" + `{"token":"good"}`},
		"text behind it":              {answer: `{"token":"good"}` + "\n<!-- served by 7 -->"},
		"a line break in it":          {answer: `{"token":"good\n"}`},
		"blanks around it":            {answer: `{"token":" good "}`},
		"one of two is null":          {answer: `{"token":null,"access_token":"good"}`},
		"one of two is empty":         {answer: `{"token":"","access_token":"good"}`},
		"an odd date and an odd life": {answer: `{"token":"good","issued_at":"yesterday","expires_in":{"seconds":5}}`},
		"a life of more than all":     {answer: `{"token":"good","expires_in":99999999999999999999999}`},
		"no content":                  {status: 204, kind: fault.Unavailable, says: "without a token"},
		"an empty token":              {answer: `{"token":""}`, kind: fault.Unavailable, says: "without a token"},
		"a blank token":               {answer: `{"token":" \n"}`, kind: fault.Unavailable, says: "without a token"},
		"a number":                    {answer: `{"token":5}`, kind: fault.Unavailable, says: "without a token"},
		"a list":                      {answer: `["good"]`, kind: fault.Unavailable, says: "without a token"},
		"nothing":                     {answer: ``, kind: fault.Unavailable, says: "without a token"},
		"another header's line": {answer: `{"token":"good\r\nX-Evil: 1"}`, kind: fault.Unavailable,
			says: "control characters"},
		"a denial with 200": {answer: `{"errors":[{"code":"DENIED","message":"not for you"}]}`,
			kind: fault.PermissionDenied, says: "DENIED: not for you"},
		"cut off": {answer: `{"token":"go`, kind: fault.Unavailable, says: "without a token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var addr string
			addr = serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/token":
					w.WriteHeader(cmp.Or(row.status, 200))
					io.WriteString(w, row.answer)
				case r.Header.Get("Authorization") == "Bearer good":
					c.ServeHTTP(w, r)
				default:
					w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, addr))
					w.WriteHeader(http.StatusUnauthorized)
				}
			})
			_, err := open(t, nil, addr+"/library/app:1", Auth{}).Manifest(t.Context())
			if fault.Of(err) != row.kind || row.kind != "" &&
				(!strings.Contains(err.Error(), row.says) || !strings.Contains(err.Error(), addr)) ||
				strings.Contains(fmt.Sprint(err), "good") {
				t.Errorf("kind %q: %v", fault.Of(err), err)
			}
		})
	}
}

// Odd spellings of a challenge. A realm that is only a path belongs to the registry itself. The
// error names a realm that is neither a path nor a URL.
func TestOddChallenges(t *testing.T) {
	c := newContent(t)
	for name, row := range map[string]struct {
		challenge string // HOST stands for the registry
		says      string // "": it is met
	}{
		"a path":                      {`Bearer realm="/token"`, ""},
		"a path with a query":         {`Bearer realm="/token?account=x"`, ""},
		"the host without its scheme": {`Bearer realm="//HOST/token"`, ""},
		"scheme in upper case":        {`Bearer realm="HTTP://HOST/token"`, ""},
		"names in upper case":         {`BEARER REALM="http://HOST/token",SERVICE="svc"`, ""},
		"without quotes":              {`Bearer realm=http://HOST/token,service=svc`, ""},
		"a comma in front":            {`, Bearer realm="http://HOST/token"`, ""},
		"blanks around the equals":    {`Bearer realm = "http://HOST/token" , service = "svc"`, ""},
		"a blank in the service":      {`Bearer realm="http://HOST/token",service="my svc"`, ""},
		"an empty service and scope":  {`Bearer realm="http://HOST/token",service="",scope=""`, ""},
		"after a scheme of its own":   {`Negotiate, Bearer realm="http://HOST/token"`, ""},
		"after credentials of one":    {`Negotiate YII=, Bearer realm="http://HOST/token"`, ""},
		"blanks around the address":   {`Bearer realm=" http://HOST/token "`, ""},
		"no realm":                    {`Bearer service="svc"`, "credentials are needed"},
		"an empty realm":              {`Bearer realm=""`, "credentials are needed"},
		"no path, no address":         {`Bearer realm="token"`, "neither a URL"},
		"a file":                      {`Bearer realm="file:///token"`, "neither a URL"},
		"a quote that never ends":     {`Bearer realm="http://HOST/token`, "credentials are needed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var addr string
			addr = serve(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/token":
					io.WriteString(w, `{"token":"good"}`)
				case r.Header.Get("Authorization") == "Bearer good":
					c.ServeHTTP(w, r)
				default:
					w.Header().Set("WWW-Authenticate", strings.ReplaceAll(row.challenge, "HOST", addr))
					w.WriteHeader(http.StatusUnauthorized)
				}
			})
			_, err := open(t, nil, addr+"/library/app:1", Auth{}).Manifest(t.Context())
			if (err == nil) != (row.says == "") ||
				err != nil && (!strings.Contains(err.Error(), row.says) || fault.Of(err) != fault.Unauthenticated) {
				t.Errorf("%v", err)
			}
		})
	}
}
