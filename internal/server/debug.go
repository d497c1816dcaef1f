package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	goruntime "runtime"
	"time"

	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/step"
)

// serveDebug serves, on a Unix socket that is root's alone, what helps to find a fault of kurid, until the server closes:
//
//	/metrics         as at metrics_listen
//	/debug/pprof/    profiles, for go tool pprof
//	/debug/state     what there is and what is under way, as JSON
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
		e.Encode(s.dump(r.Context(), o))
	})
	mux.HandleFunc("GET /debug/pprof/", pprof.Index) // and the profiles by their names
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	s.serveHTTP(l, mux)
	return nil
}

// serveHTTP serves at l until the server closes.
func (s *Server) serveHTTP(l net.Listener, handler http.Handler) {
	web := &http.Server{Handler: handler, ReadHeaderTimeout: scrapeTimeout, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
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
	d := operationDump{Method: r.Kind, Since: r.Began, Age: time.Since(r.Began).Seconds(), Given: r.Answered, Subject: r.Subject}
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
