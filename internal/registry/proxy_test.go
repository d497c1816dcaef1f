package registry

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kuri-cri/kuri/internal/fault"
)

// behind makes the client use a proxy, as HTTPS_PROXY and HTTP_PROXY would.
func behind(t *testing.T, r *Repository, proxy string) {
	t.Helper()
	at, err := url.Parse(proxy)
	if err != nil {
		t.Fatal(err)
	}
	for _, tr := range r.transports {
		tr.Proxy = http.ProxyURL(at)
	}
}

// The error of a pull through a proxy says that the proxy failed, not the registry, and which one it is.
// A refusal that will not change is not asked for again.
func TestErrorsOfAProxy(t *testing.T) {
	var asked atomic.Int32
	answers := func(status int) string {
		return serve(t, func(w http.ResponseWriter, _ *http.Request) {
			asked.Add(1)
			w.WriteHeader(status)
		})
	}
	plain := configure(t, "reg.example", "server = \"http://reg.example\"\n")
	for name, row := range map[string]struct {
		certs []string
		proxy string
		asked int32
		says  []string
	}{
		"wants a password": {nil, "http://" + answers(407), 1, []string{"the proxy 127.0.0.1:",
			"(407 Proxy Authentication Required); the proxy wants a user"}},
		"denies": {nil, "http://" + answers(403), 1, []string{"the proxy 127.0.0.1:",
			"(403 Forbidden); the environment of kurid"}},
		"is overloaded": {nil, "http://" + answers(503), attempts, []string{"the proxy 127.0.0.1:",
			"(503 Service Unavailable)"}},
		"is not there": {nil, "http://" + deadAddr(t), 0, []string{"127.0.0.1:", "this is the proxy, not the host"}},
		"does not speak TLS": {nil, "https://" + serve(t, say(200, "", "")), 0,
			[]string{"this is the proxy, not the host"}},
		"wants a password for HTTP": {plain, "http://" + answers(407), 1,
			[]string{"a proxy answered (407 Proxy Authentication Required); the proxy wants a user"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := open(t, row.certs, "reg.example/app:1", Auth{})
			behind(t, r, strings.Replace(row.proxy, "//", "//me:hidden-word@", 1))
			asked.Store(0)
			_, err := r.Manifest(t.Context())
			text := fmt.Sprint(err)
			for _, says := range append(row.says, "reg.example") {
				if fault.Of(err) != fault.Unavailable || !strings.Contains(text, says) {
					t.Errorf("%v, want %q", err, says)
				}
			}
			if strings.Contains(text, "hidden-word") || strings.Contains(text, "name it as http://") {
				t.Errorf("%v", err)
			}
			if n := asked.Load(); n != row.asked {
				t.Errorf("asked %d times, want %d", n, row.asked)
			}
		})
	}
}
