package server

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kuri-cri/kuri/internal/fault"
	"github.com/kuri-cri/kuri/internal/keeper/api"
	"github.com/kuri-cri/kuri/internal/oci"
	"github.com/kuri-cri/kuri/internal/process"
	"github.com/kuri-cri/kuri/internal/record"
)

// recordFormat is the newest format version of the records.
const recordFormat = 1

// sandboxRecord is the record of a sandbox for a successor. It is written before the sandbox is
// created, and again before it is reported.
type sandboxRecord struct {
	ID   string `json:"id"`
	Made bool   `json:"made"` // false: it is being created
	Boot string `json:"boot_id"`

	NetnsPath     string `json:"netns_path,omitempty"` // "" without a network namespace
	IPC           bool   `json:"ipc,omitempty"`
	UTS           bool   `json:"uts,omitempty"`
	PID           bool   `json:"pid,omitempty"`
	User          bool   `json:"user,omitempty"`
	ShmBytes      int64  `json:"shm_bytes,omitempty"`
	ShmPath       string `json:"shm_path,omitempty"`
	ShmUID        int    `json:"shm_uid,omitempty"` // ids of the host
	ShmGID        int    `json:"shm_gid,omitempty"`
	ShmDevice     uint64 `json:"shm_device,omitempty"` // st_dev
	MountLabel    string `json:"mount_label,omitempty"`
	CgroupsPath   string `json:"cgroups_path,omitempty"` // of the init
	SystemdCgroup bool   `json:"systemd_cgroup,omitempty"`

	InitPid    int               `json:"init_pid,omitempty"`
	InitBorn   string            `json:"init_born,omitempty"`  // see process.StartTime
	Namespaces map[string]uint64 `json:"namespaces,omitempty"` // inodes, by OCI type, of those held by descriptor
}

// containerRecord is the record of a container for a successor. It is written before the container
// is created, and at each change of its state before that is reported. The record of its exit is
// exit.json.
type containerRecord struct {
	ID        string    `json:"id"`
	SandboxID string    `json:"sandbox_id"`
	Bundle    string    `json:"bundle"`
	Boot      string    `json:"boot_id"`
	State     api.State `json:"state"` // UNKNOWN while it is being created

	Rootfs        string `json:"rootfs"`
	CgroupsPath   string `json:"cgroups_path"`
	SystemdCgroup bool   `json:"systemd_cgroup,omitempty"`
	LogPath       string `json:"log_path,omitempty"`
	LogDirectory  string `json:"log_directory,omitempty"`
	LogMaxBytes   int64  `json:"log_max_bytes,omitempty"`
	LogMaxFiles   int    `json:"log_max_files,omitempty"`
	LogRate       int64  `json:"log_rate_bytes,omitempty"`
	TTY           bool   `json:"tty,omitempty"`
	Stdin         bool   `json:"stdin,omitempty"`
	StdinOnce     bool   `json:"stdin_once,omitempty"`
	StdinGone     bool   `json:"stdin_gone,omitempty"` // it was passed on, or closed

	Made  *oci.Created      `json:"made,omitempty"`
	Born  string            `json:"born,omitempty"`  // start time of its first process: see process.StartTime
	Pipes map[string]uint64 `json:"pipes,omitempty"` // inodes of stdin, stdout and stderr

	CreatedAt int64  `json:"created_at,omitempty"` // nanoseconds since the epoch
	StartedAt int64  `json:"started_at,omitempty"`
	Outlived  uint64 `json:"outlived,omitempty"` // OOM kills before it was last asked to end
	Note      string `json:"note,omitempty"`     // resources lost with an earlier keeper
}

// bootID returns the id of this boot of the machine.
func bootID() string {
	boot, err := process.BootID()
	if err != nil {
		slog.Error("records of this keeper cannot be told from those of another boot", "err", err)
	}
	return boot
}

// Directories of the records in the keeper's directory.
const (
	sandboxRecords   = "sandboxes"
	containerRecords = "containers"
	execRecords      = "execs"
)

var recordKinds = []string{sandboxRecords, containerRecords, execRecords}

func (s *Server) recordPath(kind, id string) string {
	return filepath.Join(s.state, "keeper", kind, id+".json")
}

// makeRecordDirs creates the directories of the records. The state directory itself is not private,
// because containers with a user namespace open their files below it.
func (s *Server) makeRecordDirs() error {
	if err := os.MkdirAll(s.state, 0o711); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	for _, kind := range recordKinds {
		if err := os.MkdirAll(filepath.Join(s.state, "keeper", kind), 0o700); err != nil {
			return fmt.Errorf("make the directory of the keeper's records: %w", err)
		}
	}
	return nil
}

func writeRecord(path string, r any) error { return record.Write(path, recordFormat, r) }

func removeRecord(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove a record of the keeper: %w", err)
	}
	return nil
}

// CheckRecords reports whether this keeper can use the records of an earlier one in the state
// directory. It changes nothing. The error is of kind Precondition if a newer keeper has written
// there, and names the record that is too new.
func CheckRecords(state string) error {
	for _, kind := range recordKinds {
		records, err := filepath.Glob(filepath.Join(state, "keeper", kind, "*.json"))
		if err != nil {
			return err
		}
		for _, path := range records {
			if err := tooNew(path); err != nil {
				return err
			}
		}
	}
	return nil
}

func tooNew(path string) error {
	if version := record.Version(path); version > recordFormat {
		return fault.New(fault.Precondition,
			"record %s has format version %d and was written by a newer kuri-keeper; this one reads 1 to %d: "+
				"start the newer one, which goes on with what runs", path, version, recordFormat)
	}
	return nil
}

// readRecords reads all records of a kind. An unreadable record is set aside and does not affect
// the others. A record of a newer version of Kuri is an error of kind Precondition: an older keeper
// must not remove resources that it does not know.
func readRecords[R any](s *Server, kind string, id func(*R) string) ([]*R, error) {
	dir := filepath.Join(s.state, "keeper", kind)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the keeper's records: %w", err)
	}
	var all []*R
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		name, isRecord := strings.CutSuffix(e.Name(), ".json")
		switch {
		case strings.HasPrefix(e.Name(), "."): // being written when the keeper was killed
			os.Remove(path)
			continue
		case !isRecord:
			continue
		}
		r := new(R)
		err := record.Read(path, recordFormat, r)
		if err == nil && (id(r) != name || checkID(name) != nil) {
			err = fault.New(fault.Corrupt, "record %s is of %q", path, id(r))
		}
		if err := tooNew(path); err != nil {
			return nil, err
		}
		if err != nil {
			slog.Error("a record of the keeper cannot be read and is set aside", "record", path, "err", err)
			if err := record.SetAside(path); err != nil {
				slog.Error("set a record aside", "record", path, "err", err)
			}
			continue
		}
		all = append(all, r)
	}
	return all, nil
}

// edges are the possible changes of a container's state.
var edges = map[api.State][]api.State{
	api.State_UNKNOWN: {api.State_CREATED},
	api.State_CREATED: {api.State_RUNNING, api.State_EXITED},
	api.State_RUNNING: {api.State_CREATED, api.State_EXITED}, // back if the start failed
}

// become is the only function that changes the state of a container. It checks the edge, calls
// change for the other fields, and writes the record before the new state is visible. An exit is
// recorded in exit.json instead. The error is of kind Precondition if there is no such edge.
func (c *container) become(next api.State, change func(*containerRecord)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(edges[c.rec.State], next) {
		return fault.New(fault.Precondition, "container %s is %s and cannot become %s", c.id, c.rec.State, next)
	}
	return c.amendLocked(func(r *containerRecord) {
		r.State = next
		change(r)
	})
}

// becomeRunning is become for a start, but succeeds on a full disk. The record then stays at
// "created"; a later keeper sees from the process that the container was started.
func (c *container) becomeRunning(at int64) error {
	change := func(r *containerRecord) { r.StartedAt = at }
	err := c.become(api.State_RUNNING, change)
	if fault.OfErrno(err) != fault.Exhausted {
		return err
	}
	slog.Warn("a start cannot be recorded", "container", c.id, "err", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.State != api.State_CREATED {
		return err
	}
	c.rec.State = api.State_RUNNING
	change(&c.rec)
	return nil
}

// amend changes the record of a container, but not its state.
func (c *container) amend(change func(*containerRecord)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.amendLocked(change)
}

func (c *container) amendLocked(change func(*containerRecord)) error {
	r := c.rec
	change(&r)
	if c.recordPath != "" && r.State != api.State_EXITED {
		if err := writeRecord(c.recordPath, &r); err != nil {
			return err
		}
	}
	c.rec = r
	return nil
}
