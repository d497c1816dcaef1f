package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	goruntime "runtime"
	"strconv"
	"time"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/profile"
	"github.com/kuri-cri/kuri/internal/step"
)

// serveDebug serves profiles and state for debugging kurid, on a Unix socket for root alone, until the server closes:
//
//	/metrics         as at metrics_listen
//	/debug/pprof/    profiles, for go tool pprof
//	/debug/keeper/pprof/, /debug/streams/pprof/
//	                 likewise of the keeper, and of the process that streams
//	/debug/state     pods, containers, images and operations in progress, as JSON
func (s *Server) serveDebug(path string, o Options) error {
	l, err := o.Socket(path)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", s.telemetry.handler())
	mux.HandleFunc("GET /debug/state", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(s.dump(r.Context(), o))
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // and the profiles by their names
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	if o.Pods != nil {
		mux.HandleFunc("GET /debug/keeper/pprof/{name}", profileOf(o.Pods.Keeper.Profile))
	}
	if o.Streams != nil {
		mux.HandleFunc("GET /debug/streams/pprof/{name}", profileOf(o.Streams.Profile))
	}
	s.serveHTTP(l, mux)
	return nil
}

// profileSeconds is over how long a profile is taken that is asked for without seconds.
const profileSeconds = 10

// profileOf serves profiles of another process, with the parameters of net/http/pprof: seconds and debug.
func profileOf(take func(context.Context, profile.Request, io.Writer) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		want := profile.Request{Name: r.PathValue("name"), Seconds: profileSeconds}
		err := errors.Join(number(r, "seconds", &want.Seconds), number(r, "debug", &want.Debug))
		if err == nil {
			err = want.Check()
		}
		out := &responseWriter{ResponseWriter: w}
		if err == nil {
			w.Header().Set("Content-Type", "application/octet-stream")
			err = take(r.Context(), want, out)
		}
		switch {
		case err == nil:
		case out.some:
			panic(http.ErrAbortHandler) // the client sees that it is not all
		case errors.Is(err, fault.Invalid):
			http.Error(w, err.Error(), http.StatusBadRequest)
		case errors.Is(err, fault.NotFound):
			http.Error(w, err.Error(), http.StatusNotFound)
		case errors.Is(err, fault.Unimplemented):
			http.Error(w, err.Error(), http.StatusNotImplemented)
		default:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}
}

// number reads a parameter that may be left out. The error is of kind Invalid.
func number(r *http.Request, name string, to *int) error {
	text := r.URL.Query().Get(name)
	if text == "" {
		return nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return fault.New(fault.Invalid, "%s: %q is not a whole number", name, text)
	}
	*to = n
	return nil
}

// responseWriter records whether a part of the response was written.
type responseWriter struct {
	http.ResponseWriter
	some bool
}

func (b *responseWriter) Write(p []byte) (int, error) {
	b.some = b.some || len(p) > 0
	return b.ResponseWriter.Write(p)
}

// serveHTTP serves at l until the server closes.
func (s *Server) serveHTTP(l net.Listener, handler http.Handler) {
	web := &http.Server{Handler: handler, ReadHeaderTimeout: scrapeTimeout, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 16 << 10}
	s.web = append(s.web, web)
	s.served.Go(func() {
		if err := web.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("serve %s: %w", l.Addr(), err)
		}
	})
}

// stateDump is kurid at one moment. It has no environment, no annotation and no credential of a pod.
type stateDump struct {
	Time       time.Time       `json:"time"`
	Pid        int             `json:"pid"`
	Version    string          `json:"version"`
	Ready      string          `json:"ready"` // "yes", or why not
	Goroutines int             `json:"goroutines"`
	Memory     memoryDump      `json:"memory"`
	Operations []operationDump `json:"operations"` // the oldest first
	Pods       []pod.PodDump   `json:"pods"`       // likewise
	Pulls      int             `json:"pulls"`      // under way
	Events     eventDump       `json:"events"`
	About      map[string]any  `json:"about,omitempty"` // programs with their versions and pids, node, storage, network
}

// memoryDump is in bytes.
type memoryDump struct {
	Heap        uint64 `json:"heap"`
	FromSystem  uint64 `json:"from_system"`
	Collections uint32 `json:"collections"`
}

type eventDump struct {
	Readers int    `json:"readers"`
	Lag     int    `json:"lag"`
	Missed  uint64 `json:"missed"`
}

// operationDump is a request that is being worked on.
type operationDump struct {
	Method string `json:"method"`
	step.Subject
	Since   time.Time `json:"since"`
	Age     float64   `json:"age"`            // seconds
	Step    string    `json:"step,omitempty"` // that it is at
	StepAge float64   `json:"step_age,omitempty"`
	Given   bool      `json:"given_up,omitempty"` // its caller waits no more
	Steps   []string  `json:"steps,omitempty"`    // those that are behind, with the time that each took
	Caller  string    `json:"caller,omitempty"`
}

func (s *Server) dump(ctx context.Context, o Options) stateDump {
	var mem goruntime.MemStats
	goruntime.ReadMemStats(&mem)
	d := stateDump{
		Time: time.Now(), Pid: os.Getpid(), Version: o.Version, Ready: "yes", Goroutines: goruntime.NumGoroutine(),
		Memory: memoryDump{mem.HeapAlloc, mem.Sys, mem.NumGC}, Operations: []operationDump{},
	}
	for _, r := range s.operations.List() {
		d.Operations = append(d.Operations, dumpOperation(r))
	}
	if o.Pods != nil {
		err := o.Pods.Ready(ctx)
		if err != nil {
			d.Ready = err.Error()
		}
		count := o.Pods.Count()
		d.Pods, d.Events = o.Pods.Dump(), eventDump{count.EventReaders, count.EventLag, count.EventsMissed}
		if o.About != nil {
			d.About = o.About(ctx, err)
		}
	}
	if o.Images != nil {
		d.Pulls = o.Images.Pulling()
	}
	return d
}

func dumpOperation(r step.Report) operationDump {
	d := operationDump{Method: r.Kind, Since: r.Began, Age: time.Since(r.Began).Seconds(), Given: r.Answered,
		Subject: r.Subject}
	if r.Caller.Pid != 0 {
		d.Caller = fmt.Sprintf("%s, pid %d, uid %d", r.Caller.Program, r.Caller.Pid, r.Caller.UID)
	}
	for i, one := range r.Steps {
		if i == len(r.Steps)-1 {
			d.Step, d.StepAge = one.Name, one.Took.Seconds()
			break
		}
		d.Steps = append(d.Steps, fmt.Sprintf("%s %s", one.Name, one.Took.Round(time.Microsecond)))
	}
	return d
}
