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
	Cert     string // the certificate, and those between it and the root
	Key      string // its private key
	ClientCA string // roots of the certificates that clients must show; "": they need none
}

// PEM is what is in the files.
type PEM struct{ Cert, Key, ClientCA []byte }

// config returns what a listener does with it. The error is of kind Invalid.
func (p PEM) config() (*tls.Config, error) {
	pair, err := tls.X509KeyPair(p.Cert, p.Key)
	if err != nil {
		return nil, fault.New(fault.Invalid, "the certificate of the streaming server: %w", err)
	}
	// Not HTTP/2: it has no upgrade to SPDY or WebSocket.
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	if len(p.ClientCA) > 0 {
		c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		if !c.ClientCAs.AppendCertsFromPEM(p.ClientCA) {
			return nil, fault.New(fault.Invalid, "the client CA of the streaming server: there is no certificate in it")
		}
	}
	return c, nil
}

// files reads certificates again when their files have changed.
type files struct {
	TLS

	mu   sync.Mutex // guards all below
	good *PEM       // the last that could be used
	seen string     // what the files looked like when they were read
}

// look describes the files as they are: a change of one is one of this.
func (f *files) look() string {
	var look string
	for _, path := range []string{f.Cert, f.Key, f.ClientCA} {
		if path == "" {
			continue
		}
		if info, err := os.Stat(path); err == nil { // through symlinks, as a secret's volume has them
			look += fmt.Sprint(info.ModTime().UnixNano(), info.Size(), info.Sys(), ";")
		} else {
			look += err.Error() + ";"
		}
	}
	return look
}

// read reads them, and has them from then on if they can be used.
func (f *files) read() (*PEM, error) {
	p := &PEM{}
	for path, into := range map[string]*[]byte{f.Cert: &p.Cert, f.Key: &p.Key, f.ClientCA: &p.ClientCA} {
		if path == "" {
			continue
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("the certificate of the streaming server: %w", err)
		}
		*into = body
	}
	if f.Cert == f.Key { // one file with both
		p.Cert = append(p.Cert, p.Key...)
		p.Key = p.Cert
	}
	if _, err := p.config(); err != nil {
		return nil, err
	}
	f.good = p
	return p, nil
}

// current returns the certificates of the files, or the last that could be used, and says so then. Nil without files.
func (f *files) current() *PEM {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if look := f.look(); look != f.seen {
		first := f.seen == ""
		f.seen = look
		if _, err := f.read(); err != nil {
			slog.Error("the new certificate of the streaming server cannot be used, the old one stays", "cert", f.Cert, "err", err)
		} else if !first {
			slog.Info("the streaming server has a new certificate", "cert", f.Cert)
		}
	}
	return f.good
}

// credentials are what a listener has now.
type credentials struct {
	config atomic.Pointer[tls.Config]
}

// use has connections from now on be made with these.
func (c *credentials) use(p PEM) error {
	config, err := p.config()
	if err == nil {
		c.config.Store(config)
	}
	return err
}

// over returns a listener of connections with TLS.
func (c *credentials) over(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{
		MinVersion:         tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.config.Load(), nil },
	})
}
