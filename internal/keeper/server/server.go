package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/kuri-cri/kuri/internal/cgroup"
	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/flight"
	"github.com/kuri-cri/kuri/internal/keeper"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/namespace"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/step"
)

// Server is a keeper. It is safe for concurrent use.
type Server struct {
	state   string
	version string
	runtime oci.Runtime
	shm     *namespace.Holder // contains the pods' /dev/shm
	keep    keep
	boot    string // id of this boot of the machine
	lock    *os.File
	parent  *parent // nil if this process was not started by a holder
	events  *events
	reaper  *reaper
	ooms    cgroup.OOMLedger
	execs   atomic.Uint64
	// firstExec is less than the numbers of all execs of this keeper, and greater than those of
	// earlier ones. Constant after Recover.
	firstExec  uint64
	operations *step.Operations // of the verbs whose answers include their steps
	sessions   sync.WaitGroup
	rest       *time.Timer // fires when there has been no request for a while

	logLevel     *slog.LevelVar // set by LogAt, before Serve; nil: not set
	logOtherwise slog.Level

	sandboxFlights   flight.Group[string, *api.Sandbox]
	containerFlights flight.Group[string, *api.Container]
	removals         flight.Group[string, struct{}]

	files    files      // see restore.go
	recorded execLedger // see resume.go

	mu         sync.Mutex // guards all below
	retired    bool       // accepts no new sandboxes
	sandboxes  map[string]*sandbox
	containers map[string]*container
	resumable  map[string]*execution // started by an earlier keeper, by session; removed by the caller that resumes it
}

// Open claims the state directory, an absolute path, for this keeper. If another keeper serves it,
// the error names its pid. The caller must call Recover next, and then Serve.
func Open(state, version string) (_ *Server, err error) {
	s := &Server{
		state:      state,
		version:    version,
		runtime:    oci.NewEmbedded(filepath.Join(state, "mounts", ".oci")),
		keep:       newKeep(state),
		boot:       bootID(),
		events:     newEvents(),
		operations: step.New(nil),
		reaper:     newReaper(),
		rest:       time.AfterFunc(restAfter, debug.FreeOSMemory),
		sandboxes:  make(map[string]*sandbox),
		containers: make(map[string]*container),
		resumable:  make(map[string]*execution),
		recorded:   execLedger{records: make(map[string]*execRecord)},
	}
	if s.parent, err = findParent(); err != nil {
		return nil, err
	}
	if err := openScratch(); err != nil {
		return nil, err
	}
	if err := s.makeRecordDirs(); err != nil {
		return nil, err
	}
	if s.lock, err = takeLock(filepath.Join(state, "keeper", "lock"), "keeper"); err != nil {
		return nil, err
	}
	if err := makeMountPoint(s.mounts()); err != nil {
		s.lock.Close()
		return nil, err
	}
	failpoint.Arm(state)
	return s, nil
}

// takeLock locks the lock file of the keeper or the holder while it is open, and writes our pid to
// it.
func takeLock(path, of string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid := make([]byte, 16)
		n, _ := f.Read(pid)
		f.Close()
		return nil, fault.New(fault.Exists, "a %s serves this state directory already: pid %s", of,
			strings.TrimSpace(string(pid[:n])))
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// contain calls a verb. A panic in it becomes an error of that verb: a bug must not end the parent
// of every container.
func contain(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo,
	method ttrpc.Method) (resp any, err error) {
	err = fault.Contained(func() (err error) {
		resp, err = method(ctx, unmarshal)
		return err
	})
	return resp, err
}

// Retire reports whether the keeper holds nothing and so may exit. If so, it accepts no sandboxes
// from then on.
func (s *Server) Retire() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	// A container without a sandbox is one whose sandbox's record was lost.
	s.retired = s.retired || len(s.sandboxes)+len(s.containers) == 0
	return s.retired
}

func (s *Server) isRetired() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.retired
}

// Close releases the mount point and the lock of a retired keeper. (Serve has removed its sockets.)
func (s *Server) Close() error {
	s.reaper.stop()
	s.rest.Stop()
	s.runtime.Close()
	s.keep.drop(shmName)
	return errors.Join(s.shm.Close(), removeMountPoint(s.mounts()), s.lock.Close())
}

// restAfter is how long the keeper must be idle before it returns free memory to the kernel.
const restAfter = 2 * time.Second

// stir must be called by each verb that allocates memory.
func (s *Server) stir() { s.rest.Reset(restAfter) }

func (s *Server) mounts() string { return filepath.Join(s.state, "mounts") }

// checkID rejects invalid ids, because an id becomes a file name. (It uses no regular expression,
// which would be compiled at the start of every container's init, which is this program.)
func checkID(id string) error {
	if len(id) < 1 || len(id) > 128 || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return fault.New(fault.Invalid, "%q is not an id", id)
	}
	return nil
}

// LogAt makes the Server set level to the level that kurid requests, or to otherwise if kurid has
// requested none.
func (s *Server) LogAt(level *slog.LevelVar, otherwise slog.Level) {
	s.logLevel, s.logOtherwise = level, otherwise
	s.setLogLevel()
}

func (s *Server) setLogLevel() {
	if s.logLevel != nil {
		s.logLevel.Set(keeper.LogLevel(s.state, s.logOtherwise))
	}
}

// wire adapts the Server to its protocol: verbs with messages, and errors as codes.
type wire struct{ s *Server }

func (w *wire) Info(context.Context, *api.InfoRequest) (*api.InfoResponse, error) {
	w.s.setLogLevel()
	return &api.InfoResponse{
		Protocol: keeper.Protocol, Version: w.s.version, Pid: int32(os.Getpid()), LastEvent: w.s.events.last(),
	}, nil
}

func (w *wire) Probe(_ context.Context, req *api.ProbeRequest) (*api.ProbeResponse, error) {
	resp, err := w.s.Probe(req)
	return resp, encodeError("probe", req.Dir, err)
}

func (w *wire) CreateSandbox(ctx context.Context, req *api.CreateSandboxRequest) (*api.Sandbox, error) {
	box, err := w.s.CreateSandbox(ctx, req)
	return box, encodeError("create sandbox", req.Id, err)
}

func (w *wire) RemoveSandbox(ctx context.Context, req *api.RemoveSandboxRequest) (*api.RemoveSandboxResponse, error) {
	return &api.RemoveSandboxResponse{}, encodeError("remove sandbox", req.Id, w.s.RemoveSandbox(ctx, req.Id))
}

func (w *wire) List(context.Context, *api.ListRequest) (*api.ListResponse, error) {
	return w.s.List(), nil
}

func (w *wire) Create(ctx context.Context, req *api.CreateRequest) (*api.Container, error) {
	c, err := w.s.Create(ctx, req)
	return c, encodeError("create", req.Id, err)
}

func (w *wire) Start(ctx context.Context, req *api.StartRequest) (*api.Container, error) {
	c, err := w.s.Start(ctx, req.Id)
	return c, encodeError("start", req.Id, err)
}

func (w *wire) Update(_ context.Context, req *api.UpdateRequest) (*api.UpdateResponse, error) {
	return &api.UpdateResponse{}, encodeError("update", req.Id, w.s.Update(req))
}

func (w *wire) Signal(_ context.Context, req *api.SignalRequest) (*api.SignalResponse, error) {
	return &api.SignalResponse{}, encodeError("signal", req.Id, w.s.Signal(req.Id, syscall.Signal(req.Signal), req.All))
}

func (w *wire) Delete(ctx context.Context, req *api.DeleteRequest) (*api.DeleteResponse, error) {
	return &api.DeleteResponse{}, encodeError("delete", req.Id, w.s.Delete(ctx, req.Id))
}

func (w *wire) ReopenLog(_ context.Context, req *api.ReopenLogRequest) (*api.ReopenLogResponse, error) {
	return &api.ReopenLogResponse{}, encodeError("reopen log", req.Id, w.s.ReopenLog(req.Id))
}

func (w *wire) Profile(ctx context.Context, req *api.ProfileRequest) (*api.ProfileResponse, error) {
	return &api.ProfileResponse{}, encodeError("profile", req.Name, w.s.Profile(ctx, req))
}

func (w *wire) Events(ctx context.Context, req *api.EventsRequest) (*api.EventsResponse, error) {
	return w.s.events.after(ctx, req.After, req.WaitMs), nil
}

// encodeError encodes the error of a verb. It logs it only for debugging, because the caller reports it.
func encodeError(verb, id string, err error) error {
	if err != nil {
		slog.Debug("a request was refused", "verb", verb, "id", id, "err", fmt.Sprint(err))
	}
	return keeper.EncodeError(err)
}
