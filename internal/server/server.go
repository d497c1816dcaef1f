package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	kuriv1 "github.com/kuri-cri/kuri/api/kuri/v1"
	"github.com/kuri-cri/kuri/internal/doctor"
	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/image"
	"github.com/kuri-cri/kuri/internal/network"
	"github.com/kuri-cri/kuri/internal/pod"
	"github.com/kuri-cri/kuri/internal/step"
	streaming "github.com/kuri-cri/kuri/internal/stream"
)

// Bounds of messages, in bytes. A pod's whole description is a few MiB at most, for that is what the API server stores.
// Kubelets take answers of up to 16 MiB; a client that wants a longer list says so.
const (
	maxRequest = 16 << 20
	maxAnswer  = 64 << 20
)

// maxStreams bounds the requests at once of one connection; a client's library keeps the others back.
const maxStreams = 1000

// Options configure a server. All fields are required except ImageListen, Info and About.
type Options struct {
	Listen      string // path of the socket of the RuntimeService, and of the ImageService when ImageListen is empty
	ImageListen string // path of a socket for the ImageService alone
	// CadvisorListen is the path of another socket of the RuntimeService, which also serves the calls that cAdvisor makes to
	// containerd; "" for none.
	CadvisorListen string
	// DebugListen is the path of a socket for metrics, profiles and the state dump; "" for none.
	DebugListen   string
	MetricsListen string // TCP address of kurid's own metrics, for Prometheus; "" for none

	Pods    *pod.Pods
	Images  *image.Store
	Network network.Network
	Streams *streaming.Client
	Holder  *holder.Client                          // for its version and pid
	Socket  func(path string) (net.Listener, error) // opens a listening socket

	Version string // of kurid
	// Trace takes the operations that are over, with their full method and the context of their request; nil for none.
	Trace func(ctx context.Context, full string, r step.Report)
	// SlowAfter says for methods, by their names without the service, how long they may take: the log warns of one that took
	// longer. One that is not named is never slow.
	SlowAfter     map[string]time.Duration
	SystemdCgroup bool
	// Info is returned by a verbose Status under the key "config": the configuration of this daemon.
	Info map[string]any
	// About returns further keys of a verbose Status; ready is the error of the keeper, nil if it answers.
	About func(ctx context.Context, ready error) map[string]any
	// SetPodCIDR takes the pod CIDRs that UpdateRuntimeConfig brings, at most one of each IP version.
	SetPodCIDR func([]netip.Prefix) error
	// PruneNetwork takes the built-in network away when no pod has an address of it, and returns the pods that do.
	PruneNetwork func(context.Context) ([]string, error)
	// Doctor is the node as kuri.v1.Doctor examines it.
	Doctor doctor.Node
}

// Server serves the CRI on one socket or two.
type Server struct {
	closing   context.Context // ends when Close begins
	close     context.CancelFunc
	grpc      []*grpc.Server
	listeners []net.Listener
	accepted  *acceptor
	partial   *partial
	served    sync.WaitGroup
	failed    chan error
	handover  *handover
	pods      *pod.Pods
	slowAfter map[string]time.Duration
	trace     func(context.Context, string, step.Report) // nil for none

	operations *step.Operations
	history    *step.History // of operations on pods
	telemetry  *telemetry
	web        []*http.Server // of the telemetry and for debugging
}

// Listen opens the sockets with everything registered and serves until Close.
func Listen(o Options) (*Server, error) {
	s := &Server{
		failed: make(chan error, 4), handover: newHandover(o.Listen, o.ImageListen), accepted: newAcceptor(), partial: &partial{limit: maxPartial},
		pods: o.Pods, slowAfter: o.SlowAfter, trace: o.Trace,
	}
	s.operations, s.history = step.New(s.ended), step.NewHistory(historySize)
	s.closing, s.close = context.WithCancel(context.Background())
	s.telemetry = newTelemetry(s, o)
	cri := &runtimeService{Options: o, history: s.history}
	images := &imageService{store: o.Images, pods: o.Pods}

	main := s.newGRPC(o.Listen)
	register(main, ownAnswers(&runtime.RuntimeService_ServiceDesc), cri)
	kuriv1.RegisterNetworkServer(main, &networkService{prune: o.PruneNetwork})
	kuriv1.RegisterFilesServer(main, &filesService{pods: o.Pods})
	kuriv1.RegisterDoctorServer(main, &doctorService{node: o.Doctor})
	s.grpc = append(s.grpc, main)
	imageServer := main
	if o.ImageListen != "" {
		imageServer = s.newGRPC(o.ImageListen)
		s.grpc = append(s.grpc, imageServer)
	}
	register(imageServer, &runtime.ImageService_ServiceDesc, images)
	kuriv1.RegisterImagesServer(imageServer, &archiveService{store: o.Images, pods: o.Pods})

	if o.CadvisorListen != "" {
		(&cadvisorService{pods: o.Pods, version: o.Version}).register(main)
	}
	for path, g := range map[string]*grpc.Server{o.Listen: main, o.ImageListen: imageServer, o.CadvisorListen: main} {
		if path == "" {
			continue
		}
		if err := s.serve(g, path, o.Socket); err != nil {
			s.Close()
			return nil, err
		}
	}
	if o.DebugListen != "" {
		if err := s.serveDebug(o.DebugListen, o); err != nil { // no reason not to serve the CRI
			slog.Warn("there is no socket for debugging", "err", err)
		}
	}
	if o.MetricsListen != "" {
		if err := s.serveTelemetry(o.MetricsListen); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func (s *Server) serve(g *grpc.Server, path string, open func(string) (net.Listener, error)) error {
	l, err := open(path)
	if err != nil {
		return err
	}
	s.listeners = append(s.listeners, l)
	s.served.Go(func() {
		if err := g.Serve(&countedListener{l, s.accepted}); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			s.failed <- fmt.Errorf("serve %s: %w", path, err)
		}
	})
	return nil
}

// Failed returns a channel of errors that ended serving before Close.
func (s *Server) Failed() <-chan error { return s.failed }

// Drain takes no more requests and ends endless streams. It returns true when no request uses a record any more; what has
// still to be answered is answered until Wait. Nobody is refused meanwhile: new connections wait for the next daemon. It
// returns false when a request that uses records does not end in time: then this process has to.
func (s *Server) Drain() bool {
	s.close()
	s.accepted.pause(s.listeners, goodbyeWait)
	closed := make(chan struct{})
	s.served.Go(func() {
		defer close(closed)
		var wg sync.WaitGroup
		for _, g := range s.grpc {
			wg.Go(g.GracefulStop)
		}
		wg.Wait()
	})
	settled := s.handover.settle(closed)
	for _, w := range s.web {
		w.Close()
	}
	for _, l := range s.listeners {
		l.Close()
	}
	return settled
}

// Released says that another daemon may own the records now. It returns how many requests have still to be answered.
func (s *Server) Released() int {
	close(s.handover.released)
	return s.handover.lingering()
}

// Wait returns when every request has been answered.
func (s *Server) Wait() { s.served.Wait() }

// Close ends the server: Drain, Released and Wait, but requests that do not end are cut off.
func (s *Server) Close() {
	settled := s.Drain()
	s.Released()
	if !settled {
		for _, g := range s.grpc {
			g.Stop()
		}
	}
	s.Wait()
}

// newGRPC returns a server of the socket at path.
func (s *Server) newGRPC(path string) *grpc.Server {
	c := newCodec()
	return grpc.NewServer(
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(maxAnswer),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ForceServerCodecV2(c),
		grpc.Creds(peerCredentials{s.partial}),
		grpc.ChainUnaryInterceptor(s.unary, c.unary, s.handover.unary(path)),
		grpc.ChainStreamInterceptor(s.stream, c.stream, s.handoverStream),
		// A client whose process is frozen or gone without a word is noticed, and its streams end.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
	)
}

// register registers a v1 service under its own name and under that of v1alpha2.
func register(g *grpc.Server, v1 *grpc.ServiceDesc, impl any) {
	g.RegisterService(v1, impl)
	old := *v1
	old.ServiceName = strings.Replace(v1.ServiceName, "runtime.v1.", "runtime.v1alpha2.", 1)
	g.RegisterService(&old, impl)
}

// apiVersion is the CRI version that a request was made in.
func apiVersion(ctx context.Context) string {
	if method, _ := grpc.Method(ctx); strings.HasPrefix(method, "/runtime.v1alpha2.") {
		return "v1alpha2"
	}
	return "v1"
}
