package main

import (
	"context"
	"io"
	"os"

	"github.com/kuri-cri/kuri/internal/config"
	"github.com/kuri-cri/kuri/internal/holder"
)

// serveAlone is "kurid alone", which kuri wipe starts while no daemon serves. It serves on the socket of --listen, and on
// the one for debugging, so that no kubelet comes, until its standard input ends: it does not outlive who has started it. Its socket goes
// with it.
func serveAlone(ctx context.Context, cfg config.Config) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	cfg.ImageListen, cfg.CadvisorListen, cfg.MetricsListen = "", "", ""
	left, err := serve(ctx, cfg, noHolder(), nil)
	if left != nil {
		left.finish()
	}
	return err
}

// noHolder is a client of a holder that is never there: sockets end with this process.
func noHolder() *holder.Client { return holder.Connect(os.DevNull) }
