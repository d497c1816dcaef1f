package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/kuri-cri/kuri/internal/failpoint"
	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
)

// execRecord is the record of an exec for a successor, with which the caller can resume it. It is
// written when the process is at its start line, before the caller has its stdio. It is written
// again when the process has ended, before it is reaped, and removed once the exit is reported. For
// a process without a start line it is also written before the process is started, because a
// successor cannot know how far that got.
type execRecord struct {
	Session string       `json:"session"`
	Boot    string       `json:"boot_id"`
	Running *oci.Running `json:"running"` // nil: it may have run, or not
	Born    string       `json:"born"`    // see process.StartTime
	// Again permits starting it again for a caller who did not get its stdio: it has executed
	// nothing by then, or only something that may be repeated.
	Again bool `json:"again,omitempty"`
	Ended bool `json:"ended,omitempty"`
	Code  int  `json:"code,omitempty"` // if ended
}

// execLedger has a copy of the record of each exec, from which a removed file is restored.
type execLedger struct {
	mu      sync.Mutex             // guards records, and is held while a file is written or removed
	records map[string]*execRecord // immutable, by session
}

// add copies a record that is on disk.
func (l *execLedger) add(rec *execRecord) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records[rec.Session] = rec
}

// writeExec writes a record, which must not be changed afterwards.
func (s *Server) writeExec(rec *execRecord) error {
	s.recorded.mu.Lock()
	defer s.recorded.mu.Unlock()
	if err := writeRecord(s.recordPath(execRecords, rec.Session), rec); err != nil {
		return err
	}
	s.recorded.records[rec.Session] = rec
	return nil
}

func (s *Server) removeExec(session string) error {
	s.recorded.mu.Lock()
	defer s.recorded.mu.Unlock()
	delete(s.recorded.records, session)
	return removeRecord(s.recordPath(execRecords, session))
}

// restoreExecs writes the missing records of execs that are not over.
func (s *Server) restoreExecs() error {
	s.recorded.mu.Lock()
	defer s.recorded.mu.Unlock()
	var errs []error
	for session, rec := range s.recorded.records {
		path := s.recordPath(execRecords, session)
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := writeRecord(path, rec); err != nil {
			errs = append(errs, fmt.Errorf("record of session %s: %w", session, err))
		}
	}
	return errors.Join(errs...)
}

// intendExec records that a process without a start line is about to be started. After an error it
// must not be started.
func (s *Server) intendExec(x *execution, req *api.ExecSession) error {
	if req.Session == "" {
		return nil
	}
	rec := &execRecord{Session: req.Session, Boot: s.boot}
	if err := s.writeExec(rec); err != nil {
		return fmt.Errorf("record an exec: %w", err)
	}
	x.rec = rec
	failpoint.At("exec: intended")
	return nil
}

// recordExec records an exec so that a successor can resume it. If that fails, the exec ends with
// this keeper.
func (s *Server) recordExec(x *execution, req *api.ExecSession) {
	if req.Session == "" {
		return
	}
	when, err := process.StartTime(x.pid)
	rec := &execRecord{Session: req.Session, Boot: s.boot, Running: x.running, Born: when}
	rec.Again = len(req.Copy) > 0 || req.Starts && x.running.Line() != nil
	if err == nil {
		err = s.writeExec(rec)
	}
	if err != nil {
		slog.Warn("an exec cannot be recorded: it would end with its keeper", "container", req.Id, "err", err)
		return
	}
	x.rec = rec
	s.keep.watch(x.pid)
}

func (s *Server) recordExecEnd(x *execution, code int) {
	rec := *x.rec
	rec.Ended, rec.Code = true, code
	if err := s.writeExec(&rec); err != nil {
		slog.Warn("the end of an exec cannot be recorded", "pid", x.pid, "err", err)
	}
}

// forgetExec removes the record of an exec that is over.
func (s *Server) forgetExec(x *execution) {
	if x.rec == nil {
		return
	}
	if err := s.removeExec(x.rec.Session); err != nil {
		slog.Warn("forget an exec", "err", err)
	}
	if x.pid != 0 {
		s.keep.forget(x.pid)
	}
}

// resumeLimit is how long callers have to resume their execs after a new keeper has started.
const resumeLimit = 10 * time.Second

// recoverExecs takes over the execs of an earlier keeper and returns the running ones.
func (s *Server) recoverExecs() (running []*oci.Running) {
	records, err := readRecords(s, execRecords, func(r *execRecord) string { return r.Session })
	if err != nil {
		slog.Error("the execs of an earlier keeper cannot be resumed", "err", err)
	}
	for _, rec := range records {
		if rec.Boot != s.boot {
			if err := removeRecord(s.recordPath(execRecords, rec.Session)); err != nil {
				slog.Warn("the record of an exec from before the boot stays", "session", rec.Session, "err", err)
			}
			continue
		}
		s.recorded.add(rec) // one that is watched already may write its end
		if rec.Running == nil {
			x := &execution{rec: rec, ended: make(chan struct{}), err: errMayHaveRun}
			close(x.ended)
			s.resumable[rec.Session] = x
			continue
		}
		x := &execution{rec: rec, running: rec.Running, pid: rec.Running.Pid, ended: make(chan struct{})}
		s.resumable[rec.Session] = x
		running = append(running, x.running)
		s.serving(func() { s.watchResumable(x) })
	}
	if len(records) > 0 {
		time.AfterFunc(resumeLimit, s.endUnresumed)
	}
	return running
}

// watchResumable waits for the process, which is not our child.
func (s *Server) watchResumable(x *execution) {
	x.err = fault.Contained(func() error { return s.awaitResumable(x) })
	x.reaped = true
	close(x.ended)
	if err := x.running.Leave(); err != nil {
		slog.Warn("remove the cgroup of an exec", "err", err)
	}
}

func (s *Server) awaitResumable(x *execution) error {
	if x.rec.Ended {
		x.code = x.rec.Code
		return nil
	}
	pidfd, err := process.Reopen(x.pid, x.rec.Born)
	if err == nil {
		defer pidfd.Close()
		err = pidfd.Wait()
	}
	if err != nil {
		slog.Debug("an exec has ended while no keeper was there", "pid", x.pid, "err", err)
	}
	status, err := s.inheritedStatus(x.pid, pidfd)
	if err != nil {
		return fault.New(fault.Unavailable, "%s (%w)", nobodySaw, err)
	}
	x.code = process.ExitCode(status)
	s.recordExecEnd(x, x.code) // another holder would not know it
	return nil
}

// takeResumable returns the exec of that session, which belongs to the caller from then on, or nil
// if there is none.
func (s *Server) takeResumable(session string) *execution {
	s.mu.Lock()
	defer s.mu.Unlock()
	x := s.resumable[session]
	delete(s.resumable, session)
	return x
}

// resumeSession continues an exec that an earlier keeper started, as execSession does with a new
// one.
func (s *Server) resumeSession(ctx context.Context, req *api.ResumeSession) (code int, forget func(), err error) {
	x := s.takeResumable(req.Session)
	if x == nil {
		return 0, func() {}, fault.New(fault.NotFound, "no exec is known by the session %q", req.Session)
	}
	defer s.stop(x)
	forget = func() { s.forgetExec(x) }
	if err := s.await(ctx, x); err != nil {
		return 0, forget, err
	}
	return x.code, forget, nil
}

// errMayHaveRun is the error for a command that is not started again because an earlier keeper may
// have run it.
var errMayHaveRun = fault.New(fault.Unavailable,
	"the keeper died while the command was being started: it may have run, and is not run again")

// beginAnew kills the exec that an earlier keeper started for a session that starts again: its
// caller never had the stdio. If the exec may have run something, the error is errMayHaveRun, and
// forget must be called once the error is reported.
func (s *Server) beginAnew(session string) (forget func(), err error) {
	forget = func() {}
	if session != "" && checkID(session) != nil {
		return forget, fault.New(fault.Invalid, "session %q is not an id", session)
	}
	x := s.takeResumable(session)
	if x == nil {
		return forget, nil
	}
	if x.running != nil {
		s.endExec(x)
	}
	if !x.rec.Again {
		return func() { s.forgetExec(x) }, errMayHaveRun
	}
	s.forgetExec(x)
	return forget, nil
}

// endUnresumed ends the execs that no caller has resumed: the callers are gone, too.
func (s *Server) endUnresumed() {
	s.mu.Lock()
	var sessions []string
	for session := range s.resumable {
		sessions = append(sessions, session)
	}
	s.mu.Unlock()
	for _, session := range sessions {
		fault.Contained(func() error {
			slog.Info("ending an exec of an earlier keeper that nobody has resumed", "session", session)
			forget, _ := s.beginAnew(session)
			forget()
			return nil
		})
	}
}
