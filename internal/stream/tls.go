package stream

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/kuri-cri/kuri/internal/fault"
)

// TLS names the files of a certificate, in PEM. Without Cert, streams are served over plain HTTP.
type TLS struct {
	Cert     string // the certificate and the intermediate ones
	Key      string // its private key
	ClientCA string // root certificates for clients; "": no client certificate is required
}

// PEM holds the contents of the files.
type PEM struct{ Cert, Key, ClientCA []byte }

// config returns the configuration of a listener. The error is of kind Invalid.
func (p PEM) config() (*tls.Config, error) {
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the certificate of the streaming server: %w", err)
	}
	// HTTP/2 is left out: it has no upgrade to SPDY or WebSocket.
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair},
		NextProtos: []string{"http/1.1"}}
	if len(p.ClientCA) > 0 {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(p.ClientCA) {
			return nil, fault.New(fault.Invalid, "the client CA of the streaming server: the file holds no certificate")
		}
	}
	return c, nil
}

// files reads the certificates again when their files have changed.
type files struct {
	TLS

	mu   sync.Mutex // guards all below
	good *PEM       // the last usable one
	seen string     // their state when they were last read
}

// state describes the files as they are now. It changes when one of them does.
func (f *files) state() string {
	var now string
	for _, path := range []string{f.Cert, f.Key, f.ClientCA} {
		if path == "" {
			continue
		}
		if info, err := os.Stat(path); err == nil { // through symlinks, which volumes of secrets use
			now += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), info.Sys(), ";")
		} else {
			now += err.Error() + ";"
		}
	}
	return now
}

// read reads the files and keeps the certificates if they are usable.
func (f *files) read() (*PEM, error) {
	p := &PEM{}
	// A list: the three may name the same file.
	for _, file := range []struct {
		path string
		into *[]byte
	}{{f.Cert, &p.Cert}, {f.Key, &p.Key}, {f.ClientCA, &p.ClientCA}} {
		if file.path == "" {
			continue
		}
		body, err := os.ReadFile(file.path)
		if err != nil {
			return nil, fmt.Errorf("the certificate of the streaming server: %w", err)
		}
		*file.into = body
	}
	if _, err := p.config(); err != nil {
		return nil, err
	}
	f.good = p
	return p, nil
}

// current returns the certificates in the files. If those are unusable it logs that and returns the
// last good ones. It returns nil without files.
func (f *files) current() *PEM {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := f.state(); now != f.seen {
		first := f.seen == ""
		f.seen = now
		if _, err := f.read(); err != nil {
			slog.Error("the new certificate of the streaming server cannot be used, the old one stays", "cert",
				f.Cert, "err", err)
		} else if !first {
			slog.Info("the streaming server has a new certificate", "cert", f.Cert)
		}
	}
	return f.good
}

// credentials hold the current configuration of a listener.
type credentials struct {
	config atomic.Pointer[tls.Config]
}

// use sets the certificates for new connections.
func (c *credentials) use(p PEM) error {
	config, err := p.config()
	if err == nil {
		c.config.Store(config)
	}
	return err
}

// over returns a listener for connections with TLS.
func (c *credentials) over(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.config.Load(), nil },
	})
}
