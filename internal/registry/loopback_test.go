package registry

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const digestOfNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// A registry on loopback may use TLS or not, and may react to a ClientHello in many ways.
func TestLoopbackWithAndWithoutTLS(t *testing.T) {
	c := newContent(t)
	plain := serve(t, c.ServeHTTP)
	for name, hello := range map[string]func(net.Conn){
		"closes": func(conn net.Conn) {},
		"resets": func(conn net.Conn) { conn.(*net.TCPConn).SetLinger(0) },
		"no status line": func(conn net.Conn) {
			io.WriteString(conn,
				"<!DOCTYPE HTML>\n<html>Error code: 400</html>\n")
		},
		"one letter": func(conn net.Conn) { io.WriteString(conn, "?") },
		"a status line": func(conn net.Conn) {
			io.WriteString(conn,
				"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
		},
		"another protocol":   func(conn net.Conn) { io.WriteString(conn, "220 mail.example ESMTP\r\n") },
		"what looks like it": func(conn net.Conn) { conn.Write([]byte{0x16, 3, 3, 0xff, 0xff, 0, 0}) },
		"waits":              func(conn net.Conn) { io.Copy(io.Discard, conn) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := splitter(t, plain, hello)
			r := open(t, nil, addr+"/library/app:1", Auth{})
			if d, err := r.Resolve(t.Context()); err != nil || d.Digest != c.manifest {
				t.Errorf("%+v, %v", d, err)
			}
			if err := readBlob(t.Context(), r, c); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("with TLS", func(t *testing.T) {
		srv := httptest.NewUnstartedServer(c)
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.StartTLS()
		t.Cleanup(srv.Close)
		if err := readBlob(t.Context(), open(t, nil, host(srv)+"/library/app:1", Auth{}), c); err != nil {
			t.Error(err)
		}
	})
	t.Run("TLS of another version", func(t *testing.T) {
		srv := httptest.NewUnstartedServer(c)
		srv.Config.ErrorLog = log.New(io.Discard, "", 0)
		srv.TLS = &tls.Config{MaxVersion: tls.VersionTLS10}
		srv.StartTLS()
		t.Cleanup(srv.Close)
		_, err := open(t, nil, host(srv)+"/library/app:1", Auth{}).Manifest(t.Context())
		if err == nil || !strings.Contains(err.Error(), "tls: ") || strings.Contains(err.Error(), "without TLS") {
			t.Errorf("%v", err)
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		dead := deadAddr(t)
		_, err := open(t, nil, dead+"/library/app:1", Auth{}).Manifest(t.Context())
		if err == nil || strings.Contains(err.Error(), "without TLS") || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%v", err)
		}
	})
}

// splitter is a server that forwards HTTP connections and passes TLS connections to hello.
func splitter(t *testing.T, to string, hello func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				first := make([]byte, 4096)
				n, err := conn.Read(first)
				if err != nil {
					return
				}
				if first[0] == 0x16 {
					hello(conn)
					return
				}
				on, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer on.Close()
				on.Write(first[:n])
				go io.Copy(on, conn)
				io.Copy(conn, on)
			}()
		}
	}()
	return l.Addr().String()
}

// A slash at the end of an address in hosts.toml changes nothing.
func TestAddressWithASlash(t *testing.T) {
	c := newContent(t)
	for file, path := range map[string]string{
		"server = 'ADDR'": "/v2/", "server = 'ADDR/'": "/v2/", "server = 'ADDR//v2//'": "/v2/",
		"server = 'ADDR/'\noverride_path = true": "/", "server = 'ADDR'\noverride_path = true": "/",
		"server = 'ADDR/a/'\noverride_path = true": "/a/", "server = 'ADDR/a/'": "/a/v2/",
		"server = 'http://127.0.0.1:1'\n[host.'ADDR/']": "/v2/",
	} {
		server := serve(t, func(w http.ResponseWriter, r *http.Request) {
			rest, ok := strings.CutPrefix(r.URL.Path, path+"library/")
			if !ok {
				t.Errorf("%q: asked for %s", file, r.URL.Path)
			}
			r.URL.Path = "/v2/library/" + rest
			c.ServeHTTP(w, r)
		})
		certs := configure(t, "registry.example", strings.ReplaceAll(file, "ADDR", "http://"+server))
		if _, err := open(t, certs, "registry.example/library/app:1", Auth{}).Manifest(t.Context()); err != nil {
			t.Errorf("%q: %v", file, err)
		}
	}
}
