package main

import (
	"context"
	"io"
	"os"

	"github.com/kuri-cri/kuri/internal/config"
	"github.com/kuri-cri/kuri/internal/holder"
)

// serveAlone is "kurid alone", which kuri wipe starts when no daemon serves. It serves only the
// socket of --listen, a private one that no kubelet knows, and the debug socket. It exits at the
// end of its standard input, so it does not outlive its parent, and removes its socket.
func serveAlone(ctx context.Context, cfg config.Config) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	cfg.ImageListen, cfg.CadvisorListen, cfg.MetricsListen = "", "", ""
	pending, err := serve(ctx, cfg, noHolder(), nil)
	if pending != nil {
		pending.finish()
	}
	return err
}

// noHolder returns a client without a holder, so sockets are closed with this process.
func noHolder() *holder.Client { return holder.Connect(os.DevNull) }
