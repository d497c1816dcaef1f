// Command web is the example: a small web server, the only program of the image localhost/kuri-web:1.
//
//	web           serves one page on :8080 (or the address in LISTEN), a line on standard output for each request
//	web -check    asks the server beside it for the page and says what came back; exits 1 when it was not 200.
//	              Made for `kuri exec` and for readiness probes, since the image has no shell and no curl.
//
// It ends, with status 0, on TERM.
package main

import (
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

//go:embed index.html
var index string

func main() {
	check := flag.Bool("check", false, "ask the running server for its page, and end")
	flag.Parse()
	listen := os.Getenv("LISTEN")
	if listen == "" {
		listen = ":8080"
	}
	run := serve
	if *check {
		run = ask
	}
	if err := run(listen); err != nil {
		fmt.Fprintln(os.Stderr, "web:", err)
		os.Exit(1)
	}
}

// serve answers on listen until TERM or INT, then lets the requests under way end.
func serve(listen string) error {
	page, err := template.New("index").Parse(index)
	if err != nil {
		return err
	}
	hostname, err := os.Hostname()
	if err != nil {
		return err
	}
	started := time.Now()

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if err := page.Execute(w,
			map[string]any{"Hostname": hostname, "Up": time.Since(started).Round(time.Second)}); err != nil {
			fmt.Fprintln(os.Stderr, "web: send the page:", err)
		}
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	server := &http.Server{Handler: logged(mux), ReadHeaderTimeout: 5 * time.Second}

	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf("%s serves on %s\n", hostname, listener.Addr())

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		<-ctx.Done()
		limit, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		ended <- server.Shutdown(limit)
	}()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	fmt.Println("asked to end, bye")
	return <-ended
}

// logged prints a line for each request to h.
func logged(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s %s from %s\n", r.Method, r.URL.Path, r.RemoteAddr)
		h.ServeHTTP(w, r)
	})
}

// ask fetches the page of the server at listen, on this host.
func ask(listen string) error {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get("http://" + net.JoinHostPort("localhost", port) + "/healthz")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s", resp.Status, body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server is not well")
	}
	return nil
}
